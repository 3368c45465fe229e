"""What a plan says of the host's RAM: against what the benchmarks measured, and with room for the system."""
import json

import pytest
from planning import BENCHMARKS, job

from debzero.plan.host_memory import PROCESS, host_memory, system_bytes

GIB = 2**30
BERT_LARGE = {"type": "bert", "vocab_size": 30522, "hidden_size": 1024, "num_hidden_layers": 24,
              "num_attention_heads": 16, "intermediate_size": 4096}


@pytest.mark.parametrize(("ram", "kept"), [(0, 0), (4, 1), (8, 1.8), (16, 2.6), (116, 8.6), (128, 9.32), (256, 11.88)])
def test_the_system_keeps_the_published_shares(ram, kept):
    assert system_bytes(ram * GIB) == pytest.approx(kept * GIB)


def test_loading_and_offloading_follow_each_other_and_every_process_counts():
    one = host_memory(10 * GIB, 10**9, False, 1, False, 116 * GIB)
    assert one.total == 10 * GIB + PROCESS + system_bytes(116 * GIB)
    assert host_memory(0, 10**9, False, 8, True, 0).total == 8 * (4 * 10**9 + PROCESS)
    assert host_memory(0, 10**10, True, 1, True, 0).loading == 0, "built a layer at a time"
    assert host_memory(0, 10**10, True, 1, False, 0).loading == 5 * 10**9, "a file at a time"


def test_no_benchmark_took_more_ram_than_is_planned_and_none_much_less(bench, planned, monkeypatch):
    """host_bytes: how far a host's available memory fell. Each rank had a process and BERT-Large."""
    monkeypatch.setattr("debzero.plan.planner._deepspeed_release", lambda: (0, 19))
    rows = {}
    for name, ranks in (("article-2-deepspeed", 2), ("article-2-gpus", 2), ("article-2", 2), ("article-4", 4)):
        path = job(bench, f"ranks-{ranks}", model=BERT_LARGE, ranks=ranks, train={"global_batch": 64, "micro_batch": 8})
        plan = planned(path, "--gpus", ranks) if ranks not in rows else rows[ranks]
        rows[ranks] = plan
        choices = {(row["stage"], row["offload_optimizer"], row["offload_param"]): row for row in plan["choices"]}
        for found in json.loads((BENCHMARKS / f"{name}.json").read_text())["configurations"]:
            row = choices[found["stage"], found["offload_optimizer"], found["offload_param"]]
            need = row["ram_bytes"] - row["ram_parts"]["system"]
            taken = found["summary"]["host_bytes"]
            assert taken <= need <= taken + 2.6 * GIB * ranks, (name, found["label"])


def test_ram_that_offload_alone_would_fill_is_not_recommended(bench, planned):
    """The ranks' processes and the system need some, too."""
    path = job(bench, model="bert-large-uncased", train={"global_batch": 64, "micro_batch": 8})
    rows = planned(path, "--gpus", 2, "--gpu-memory", "40G", "--ram", "256G")["choices"]
    offloading = next(row for row in rows if row["offload_optimizer"] == "cpu")
    full = offloading["ram_parts"]["offloaded"] + 2**20
    (row,) = [row for row in planned(path, "--gpus", 2, "--gpu-memory", "40G", "--ram", full)["choices"]
              if (row["stage"], row["offload_optimizer"]) == (offloading["stage"], "cpu")]
    assert row["lacks"] == ["RAM"] and not row["fits"]
