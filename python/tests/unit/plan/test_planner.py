"""The memory that `debzero plan` predicts: against torch's own saved tensors, against the papers, and through the
command."""
import json
import resource
import socket

import numpy as np
import pytest
import torch
import yaml

from debzero import cli
from debzero.bench.configurations import chosen
from debzero.bench.predict import read_plan
from debzero.job.schema import Job
from debzero.model import build, tasks
from debzero.plan import meta_device
from debzero.plan.activations import Curve, shorten, stacks, trace
from debzero.plan.memory import Model, Setting, predict
from debzero.resolve.sharding import SHARDINGS, Sharding

TINY = {
    "classification": {"type": "bert", "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 6,
                       "num_attention_heads": 2, "intermediate_size": 128},
    "causal-lm": {"type": "gpt2", "vocab_size": 100, "n_embd": 32, "n_layer": 6, "n_head": 2, "bos_token_id": 0,
                  "eos_token_id": 0},
    "text-to-text": {"type": "t5", "vocab_size": 100, "d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 6,
                     "num_heads": 2},
}
LLAMA_7B = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
            "num_hidden_layers": 32, "vocab_size": 32000, "max_position_embeddings": 4096, "pad_token_id": 0}


def shapes(task, length=16, **changes):
    from debzero.plan.model_shapes import Shapes

    model = {**TINY[task], **changes}
    job = Job.model_validate({"model": model, "task": task, "data": {"dataset": "x.csv", "max_length": length},
                              "output": "out"})
    return Shapes(job, "job.yml", None)


def curve(task, half=None, whole=False, dtype=torch.float32, length=16, compiled=False, **changes):
    made = shapes(task, length, **changes)
    model = made._build().to(dtype)
    stack = [(layer, 1) for _, _, layers in stacks(model) for layer in layers] if whole else shorten(model)
    return trace(model, stack, made.task.losses, made._batch(), half, compiled)


@pytest.mark.parametrize("half", [None, torch.bfloat16])
@pytest.mark.parametrize("task", list(TINY))
def test_four_layers_and_repetition_equal_the_whole_model(task, half):
    short, whole = curve(task, half), curve(task, half, whole=True)
    assert short.forward == whole.forward
    for name in ("sample", "gradients"):
        np.testing.assert_array_equal(getattr(short, name), getattr(whole, name), err_msg=name)


@pytest.mark.parametrize("task", list(TINY))
def test_all_gradients_come_and_no_activation_stays(task):
    found, model = curve(task), shapes(task)._build()
    assert found.gradients[-1] == sum(p.numel() for p in model.parameters())
    assert np.all(np.diff(found.gradients) >= 0) and not found.gradients[found.forward - 1]
    assert 0 < found.sample[-1] < 0.02 * found.sample[found.forward - 1], "the inputs and the last operation's result"


def test_a_layer_of_bert_keeps_what_korthikanti_et_al_count():
    length, hidden, heads = 64, 128, 4
    sizes = {"length": length, "hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": 4 * hidden,
             "dtype": torch.float16}
    two, three = (curve("classification", num_hidden_layers=layers, **sizes) for layers in (3, 4))
    layer = three.sample[three.forward - 1] - two.sample[two.forward - 1]
    eager = getattr(shapes("classification")._build().config, "_attn_implementation", "eager") == "eager"
    expected = 34 * length * hidden + (5 * heads * length**2 if eager else 0)
    assert layer == pytest.approx(expected, rel=0.02)
    compiled = [curve("classification", num_hidden_layers=layers, compiled=True, **sizes) for layers in (3, 4)]
    kept = compiled[1].sample[compiled[1].forward - 1] - compiled[0].sample[compiled[0].forward - 1]
    assert 0.8 * expected < kept < 1.02 * expected


@pytest.mark.parametrize("task", list(TINY))
def test_the_forward_pass_keeps_what_torch_saves_on_the_cpu(task):
    """Without dropout, whose kernel keeps other things on the CPU, the same code on real tensors must save as many
    bytes."""
    import transformers

    quiet = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"),
                          0.0) if task == "classification" else (
        dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0) if task == "causal-lm"
        else {"dropout_rate": 0.0})
    made = shapes(task, **quiet)
    made.config._attn_implementation = "eager"
    model = getattr(transformers, made.task.auto).from_config(made.config).float().train()
    rows, saved = 3, {}

    def pack(tensor):
        storage = getattr(tensor, "untyped_storage", tensor.storage)()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = {name: torch.ones(rows, *tensor.shape[1:], dtype=tensor.dtype) for name, tensor in made._batch().items()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made.task.losses(model, batch).sum()
    weights = {getattr(t, "untyped_storage", t.storage)().data_ptr() for t in [*model.parameters(), *model.buffers(),
                                                                               *batch.values()]}
    real = sum(size for place, size in saved.items() if place not in weights)
    with meta_device.OnMeta():
        meta = getattr(transformers, made.task.auto).from_config(made.config).float()
    found = trace(meta, shorten(meta), made.task.losses, made._batch(), None, False)
    inputs = sum(t.numel() * t.element_size() for t in batch.values())
    predicted = found.bytes(rows)[found.forward - 1] - inputs
    assert predicted == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize(("strides", "fused"), [("straight", True), ("permuted", False)])
def test_attention_is_fused_where_the_masks_strides_allow(strides, fused):
    """torch's own kernels keep nothing of s x s; with other strides it makes two products in fp32 (seen on an H200 with
    T5)."""
    def scaled_dot_product_attention():
        """Only the name counts."""

    query, key, value = (torch.rand(2, 4, 8, 16, requires_grad=True) for _ in range(3))
    mask = torch.rand(1, 4, 8, 8) if strides == "straight" else torch.rand(1, 8, 8, 4).permute(0, 3, 1, 2)
    attended: list = []
    output = meta_device.AsOnCuda(None, attended.extend).__torch_function__(
        scaled_dot_product_attention, (), (query, key, value), {"attn_mask": mask, "dropout_p": 0.0})
    assert bool(attended) == fused and output.shape == value.shape
    if not fused:
        expected = torch.softmax(query @ key.transpose(-2, -1) / 4 + mask, -1) @ value
        torch.testing.assert_close(output, expected)


def test_t5s_bias_becomes_straight_and_stays_the_same():
    import transformers

    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**{k: v for k, v in TINY["text-to-text"].items() if k != "type"}))
    attention = model.encoder.block[0].layer[0].SelfAttention
    before = attention.compute_bias(8, 8)
    build.use_contiguous_bias(model)
    after = attention.compute_bias(8, 8)
    assert not before.is_contiguous() and after.is_contiguous() and torch.equal(before, after)
    assert not any("compute_bias" in name for name in model.state_dict())


MODEL = Model(decayed=(10**6,) * 100, others=(1000,) * 100, buffers=0, largest_layer=10**6, hidden=1000)
NOTHING = Curve(np.zeros(3), np.zeros(3), np.array([0.0, 0.0, MODEL.total]), 1)


def setting(stage, ranks=4, **changes):
    zero = {"stage": stage, "reduce_bucket_size": 10**6, "overlap_comm": False, "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": 0, "stage3_param_persistence_threshold": 0} if stage else {}
    return Setting(stage, ranks, 1, 1, "bf16", {**zero, **changes.pop("zero", {})}, **changes)


@pytest.mark.parametrize(("stage", "weights", "states"),
                         [(0, 4, 8), (1, 2, 12 / 4), (2, 2, 12 / 4), (3, 2 / 4, 12 / 4)])
def test_the_states_are_those_of_the_zero_paper(stage, weights, states):
    found = predict(MODEL, NOTHING, setting(stage))
    assert found.parts["parameters"] == pytest.approx(weights * MODEL.total, rel=0.01)
    assert found.parts["optimizer"] == pytest.approx(states * MODEL.total, rel=0.01)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_parts_are_the_peak_and_every_phase_is_below_it(stage):
    found = predict(MODEL, NOTHING, setting(stage))
    assert sum(found.parts.values()) == pytest.approx(found.peak, abs=10)
    assert found.phases[found.phase] == found.peak == max(found.phases.values())
    assert found.device > found.peak


def test_offloading_moves_the_states_off_the_gpu_and_says_where():
    here = predict(MODEL, NOTHING, setting(2))
    cpu = predict(MODEL, NOTHING, setting(2, zero={"offload_optimizer": {"device": "cpu", "pin_memory": False}}))
    assert cpu.parts["optimizer"] == 0 and cpu.peak < here.peak and here.host == here.nvme == 0
    assert 16 * MODEL.total / 4 <= cpu.host <= 20 * MODEL.total / 4
    nvme = predict(MODEL, NOTHING, setting(3, zero={"offload_optimizer": {"device": "nvme"}}))
    assert nvme.nvme == pytest.approx(16 * MODEL.total / 4, rel=0.01)


def test_stage_3_gathers_as_much_as_it_may_ahead():
    """Prefetching runs ahead: with DeepSpeed's own limit of 1e9 elements, all of a small model is whole when the
    backward pass begins."""
    zero = {"stage3_prefetch_bucket_size": 1, "stage3_max_live_parameters": 10**9}
    layers = np.linspace(0.0, MODEL.total, 101)
    curve = Curve(np.zeros(101), np.zeros(101), layers, 1)
    fixed, all_of_it = predict(MODEL, curve, setting(3)), predict(MODEL, curve, setting(3, zero=zero))
    some = predict(MODEL, curve, setting(3, zero={**zero, "stage3_max_live_parameters": 10**7}))
    assert all_of_it.phases["backward"] - fixed.phases["backward"] == pytest.approx(2 * MODEL.total, rel=0.02)
    assert some.phases["backward"] - fixed.phases["backward"] == pytest.approx(2 * 10**7, rel=0.02)


def test_accumulation_keeps_gradients_through_the_forward_pass():
    once, twice = (predict(MODEL, NOTHING, Setting(0, 4, 1, steps, "bf16", {})) for steps in (1, 2))
    assert twice.phases.get("forward", 0) > once.phases.get("forward", 0)


def job(bench, name, **values):
    path = bench.folder / f"{name}.yml"
    path.write_text(yaml.safe_dump({"data": {"dataset": "rows.csv", "held_out": 0.2, "max_length": 128},
                                    "output": "out", "train": {"global_batch": 64}, **values}))
    return path


@pytest.fixture
def planned(capsys, monkeypatch):
    """Runs the command in this process, as importing torch takes most of its time; returns its JSON. The hub could be asked, and is not:
    that is refused here."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("the hub is asked"))

    def run(*arguments):
        assert cli.main(["plan", *map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize(("model", "task", "parameters"), [
    ("bert-large-uncased", "classification", 335_143_938), ("gpt2-medium", "causal-lm", 354_823_168),
    ("t5-base", "text-to-text", 222_903_552)])
def test_plan_knows_the_published_models_without_the_hub(bench, planned, model, task, parameters):
    found = planned(job(bench, "plan", model=model, task=task), "--gpus", 2, "--gpu-memory", "40G")
    assert found["model"]["parameters"] == parameters and model in found["notes"][0]
    rows = {(row["stage"], row["offload_optimizer"], row["offload_param"]): row for row in found["choices"]}
    for row in rows.values():
        assert sum(row["parts"].values()) == pytest.approx(row["peak_bytes"], abs=10)
        assert 32 % row["largest_micro_batch"] == 0
    peaks = [rows[stage, "none", "none"]["peak_bytes"] for stage in ("none", 1, 2)]
    assert peaks == sorted(peaks, reverse=True)
    assert rows[2, "cpu", "none"]["peak_bytes"] < peaks[2] and rows[2, "cpu", "none"]["ram_bytes"] > 16 * parameters
    assert rows[3, "nvme", "nvme"]["nvme_bytes"] > rows[3, "nvme", "cpu"]["nvme_bytes"] > 0


def test_a_namesake_of_a_published_model_is_asked_of_the_hub(bench, monkeypatch):
    asked = []

    def nowhere(name, **how):
        asked.append((name, how))
        raise OSError("it is not there")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", nowhere)
    assert cli.main(["plan", str(job(bench, "plan", model="somebody/gpt2"))]) == 0
    assert [how.get("local_files_only", False) for _, how in asked] == [True, False]


def test_less_memory_asks_for_more_sharding_and_smaller_micro_batches(bench, planned):
    path, order = job(bench, "plan", model="bert-large-uncased"), [sharding.label for sharding in SHARDINGS]
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
    found = planned(job(bench, "plan", model="bert-large-uncased"), "--gpus", 2, "--gpu-memory", "7G")
    assert len({row["micro_batch"] for row in found["choices"]}) > 1
    for row in found["choices"]:
        assert row["fits"] == (row["largest_micro_batch"] > 0)
        assert not row["fits"] or row["micro_batch"] == row["largest_micro_batch"]


def test_every_row_of_a_bench_and_the_jobs_own_choice_are_planned(bench, planned):
    own = {"stage": 3, "offload_param": "cpu"}
    found = planned(job(bench, "plan", model="bert-large-uncased", zero=own), "--gpus", 2, "--gpu-memory", "40G",
                    "--nvme", 0)
    shown = read_plan(json.dumps(found))
    assert [sharding for sharding in chosen(["none", 1, 2, 3], ["none", "cpu", "nvme"]) if sharding not in shown] == []
    assert (found["choices"][-1]["offload_optimizer"], found["choices"][-1]["offload_param"]) == ("none", "cpu")
    assert found["hardware"]["nvme"] == 0 and {"NVMe"} == {lack for row in found["choices"] for lack in row["lacks"]}


def test_zero_that_is_merely_switched_on_is_planned_at_each_stage(bench, planned):
    path = job(bench, "plan", model="bert-large-uncased", deepspeed={"zero_optimization": True})
    found = planned(path, "--gpus", 2, "--gpu-memory", "40G")
    memory = {row["stage"]: row["peak_bytes"] for row in found["choices"] if row["offload_optimizer"] == "none"}
    assert memory[1] >= memory[2] > memory[3]


@pytest.mark.parametrize(("model", "key"), [
    ({"type": "nonsense", "vocab_size": 100}, "model.type"),
    ({"type": "bert", "vocab_size": 100, "hidden_size": "abc"}, "model.hidden_size"),
    ({"type": "bert", "vocab_size": 100, "hidden_size": 64, "num_attention_heads": 5}, "model")])
def test_a_model_that_cannot_be_is_one_problem(bench, capsys, model, key):
    assert cli.main(["plan", str(job(bench, "plan", model=model)), "--json"]) == 2
    assert [problem["key"] for problem in json.loads(capsys.readouterr().out)["problems"]] == [key]


@pytest.mark.parametrize("config", [[], {"model_type": "bert", "num_attention_heads": "x"},
                                    {"model_type": "bert", "hidden_size": 100}])
def test_a_configuration_that_is_none_is_one_problem(bench, capsys, config):
    (bench.folder / "config.json").write_text(json.dumps(config))
    arguments = ["plan", str(job(bench, "plan", model="gpt2")), "--config", str(bench.folder / "config.json"), "--json"]
    assert cli.main(arguments) == 2
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 1


def test_what_was_said_of_a_key_is_not_followed_by_what_it_leads_to(bench, capsys):
    assert cli.main(["plan", str(job(bench, "plan", model="gpt2", train={"global_batch": "abc"})), "--gpus", "3",
                     "--json"]) == 2
    assert [problem["key"] for problem in json.loads(capsys.readouterr().out)["problems"]] == ["train.global_batch"]


def test_the_table_is_narrow_and_names_the_choice(bench):
    done = bench.run("plan", job(bench, "plan", model="bert-large-uncased"), "--gpus", 2, "--gpu-memory", "40G")
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line[2:].startswith(("plain", "ZeRO"))]
    assert len(table) == len(SHARDINGS) and max(map(len, done.stdout.splitlines())) <= 100
    assert "Recommended: plain DDP" in done.stdout


def test_checkpointing_takes_activations_away(bench, planned):
    path = {"often": job(bench, "often", model="bert-large-uncased"),
            "again": job(bench, "again", model="bert-large-uncased",
                         train={"global_batch": 64, "gradient_checkpointing": True})}
    peaks = {name: planned(file)["choices"][2]["peak_bytes"] for name, file in path.items()}
    assert peaks["again"] < 0.8 * peaks["often"]


def test_a_model_that_cannot_be_followed_is_named(bench, monkeypatch, capsys):
    def curve(*_):
        raise AssertionError("each layer runs once forward and once backward")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("debzero.plan.model_shapes.Shapes.curve", curve)
    assert cli.main(["plan", str(job(bench, "plan", model="bert-large-uncased"))]) == 2
    assert "cannot be followed" in (said := capsys.readouterr().err) and "debzero tune" in said


def test_all_that_is_wrong_is_said_at_once(bench):
    path = job(bench, "plan", model="/no/such/folder", train={"global_batch": 63})
    done = bench.run("plan", path, "--gpus", 2, "--gpu-memory", "lots", "--ram", "-3")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for word in ("--gpu-memory", "--ram", "global_batch", "/no/such/folder"):
        assert word in done.stderr


def test_a_model_of_seven_billion_parameters_takes_seconds(bench):
    (bench.folder / "config.json").write_text(json.dumps(LLAMA_7B))
    path = job(bench, "plan", model="gpt2", task="causal-lm")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = bench.run("plan", path, "--config", bench.folder / "config.json", "--gpus", 8, "--gpu-memory", "80G",
                     "--json")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert json.loads(done.stdout)["model"]["parameters"] == 6_738_415_616
    # Processor time, which other processes on the host do not add to: 5 seconds of two cores.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10


def test_every_task_has_a_model_here():
    assert {*TINY, "regression"} == set(tasks.TASKS)
