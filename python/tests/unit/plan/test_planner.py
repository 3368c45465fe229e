"""What `debzero plan` predicts for each sharding, and what it recommends."""
import json
import time
from types import SimpleNamespace

import pytest
from planning import job

from debzero.bench.configurations import chosen
from debzero.bench.predict import read_plan
from debzero.plan.planner import recommend, speed_words
from debzero.resolve.sharding import SHARDINGS, Sharding

LLAMA_7B = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
            "num_hidden_layers": 32, "vocab_size": 32000, "max_position_embeddings": 4096, "pad_token_id": 0}


def test_less_memory_asks_for_more_sharding_and_smaller_micro_batches(bench, planned):
    path, order = job(bench, model="bert-large-uncased"), [sharding.label for sharding in SHARDINGS]
    places, micros = [], []
    for size in ("80G", "9G", "7G", "6G", "5G", "4G"):
        found = planned(path, "--gpus", 2, "--gpu-memory", size)
        best = found["recommended"]
        places.append(order.index(Sharding(0 if best["stage"] == "none" else best["stage"], best["offload_optimizer"],
                                           best["offload_param"]).label))
        micros.append([row["largest_micro_batch"] for row in found["choices"]])
    assert places[0] == 0 and places == sorted(places) and len(set(places)) > 1
    for larger, smaller in zip(micros, micros[1:]):
        assert all(more >= less for more, less in zip(larger, smaller))


def test_each_row_of_an_automatic_micro_batch_is_what_would_run(bench, planned):
    found = planned(job(bench, model="bert-large-uncased"), "--gpus", 2, "--gpu-memory", "7G")
    assert len({row["micro_batch"] for row in found["choices"]}) > 1
    for row in found["choices"]:
        assert row["fits"] == (row["largest_micro_batch"] > 0)
        assert not row["fits"] or row["micro_batch"] == row["largest_micro_batch"]


def test_every_row_of_a_bench_and_the_jobs_own_choice_are_planned(bench, planned):
    own = {"stage": 3, "offload_param": "cpu"}
    found = planned(job(bench, model="bert-large-uncased", zero=own), "--gpus", 2, "--gpu-memory", "40G",
                    "--nvme", 0)
    shown = read_plan(json.dumps(found), Sharding(3, offload_param="cpu"))
    assert [sharding for sharding in chosen(["none", 1, 2, 3], ["none", "cpu", "nvme"]) if sharding not in shown] == []
    assert (found["choices"][-1]["offload_optimizer"], found["choices"][-1]["offload_param"]) == ("none", "cpu")
    assert found["hardware"]["nvme"] == 0 and {"NVMe"} == {lack for row in found["choices"] for lack in row["lacks"]}


def test_plain_ddp_is_compared_with_what_the_json_asks_for(bench, planned):
    """fp16 and the batch of the JSON, where plain DDP has no JSON."""
    asked = {"fp16": {"enabled": True}, "train_batch_size": 128, "train_micro_batch_size_per_gpu": 4,
             "zero_optimization": {"stage": 1, "cpu_offload": True}}
    found = planned(job(bench, model="bert-large-uncased", deepspeed=asked, train={"precision": "bf16"}), "--gpus", 2,
                    "--gpu-memory", "40G")
    assert found["precision"] == "fp16"
    assert {(row["micro_batch"], row["accumulation"]) for row in found["choices"]} == {(4, 16)}
    alone, one = (next(row for row in found["choices"] if (row["stage"], row["offload_optimizer"]) == (stage, "none"))
                  for stage in ("none", 1))
    assert one["ram_bytes"] == alone["ram_bytes"], "a row without offload has none"


def test_zero_that_is_merely_switched_on_is_planned_at_each_stage(bench, planned):
    path = job(bench, model="bert-large-uncased", deepspeed={"zero_optimization": True}, zero={"favour": "memory"})
    found = planned(path, "--gpus", 2, "--gpu-memory", "40G")
    memory = {row["stage"]: row["peak_bytes"] for row in found["choices"] if row["offload_optimizer"] == "none"}
    assert memory[1] >= memory[2] > memory[3]


def test_checkpointing_takes_activations_away(bench, planned):
    path = {"often": job(bench, "often", model="bert-large-uncased"),
            "again": job(bench, "again", model="bert-large-uncased",
                         train={"global_batch": 64, "gradient_checkpointing": True})}
    peaks = {name: planned(file)["choices"][2]["peak_bytes"] for name, file in path.items()}
    assert peaks["again"] < 0.8 * peaks["often"]


def test_a_model_of_seven_billion_parameters_takes_seconds(bench, planned):
    (bench.folder / "config.json").write_text(json.dumps(LLAMA_7B))
    path = job(bench, model="gpt2", task="causal-lm")
    before = time.process_time()  # of all threads; other processes on the host do not add to it
    found = planned(path, "--config", bench.folder / "config.json", "--gpus", 8, "--gpu-memory", "80G")
    assert found["model"]["parameters"] == 6_738_415_616
    assert time.process_time() - before < 8
    assert found["recommended"]["stage"] in (1, 2, 3) and not found["choices"][0]["fits"]


def row(label, lacks, largest=0, speed=None):
    sharding = SimpleNamespace(label=label, stage=0 if label == "plain DDP" else 1)
    return SimpleNamespace(sharding=sharding, lacks=lacks, largest_micro_batch=largest, speed=speed)


@pytest.mark.parametrize(("rows", "chosen_label", "reason"), [
    ([row("plain DDP", []), row("ZeRO-1", [])], "plain DDP", "it fits, so nothing has to be sharded or offloaded"),
    ([row("plain DDP", ["GPU memory"]), row("ZeRO-1", ["GPU memory", "RAM"]), row("ZeRO-2", [])], "ZeRO-2",
     "least communication of those that fit; ZeRO-1 lacks GPU memory and RAM"),
    ([row("plain DDP", ["GPU memory"]), row("ZeRO-1", ["GPU memory"], 4)], "ZeRO-1",
     "but only with a smaller micro-batch: set train.micro_batch to 4 or less"),
    ([row("plain DDP", ["GPU memory"])], None, "not even a micro-batch of one sample")])
def test_the_recommendation_says_why(rows, chosen_label, reason):
    best, why = recommend(rows)
    assert (best.sharding.label if best else None) == chosen_label and why.startswith(reason)


def test_a_micro_batch_that_the_json_fixes_is_not_blamed_on_the_model():
    assert "that train_micro_batch_size_per_gpu in ds.json sets" in recommend(
        [row("plain DDP", ["GPU memory"])], "train_micro_batch_size_per_gpu in ds.json")[1]


def test_what_the_choice_costs_in_speed_is_said_beside_it():
    rows = [row("plain DDP", ["GPU memory"], speed=1), row("ZeRO-1", [], speed=1.18), row("ZeRO-3", [], speed=0.15),
            row("ZeRO-1 + CPU", [])]
    assert speed_words(rows[1], rows) == "it was 1.18 times as fast as plain DDP where it was measured"
    assert speed_words(rows[2], rows).endswith("as plain DDP where it was measured; ZeRO-1, which fits too, 1.18 times")
    assert speed_words(rows[0], rows) == "where it was measured, ZeRO-1, which fits too, was 1.18 times as fast"
    assert speed_words(rows[0], rows[:1]) == "nothing that fits was faster where it was measured"
    assert "not been measured" in speed_words(rows[3], rows)
