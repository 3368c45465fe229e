"""Whether further GPUs pay, and why not."""
from dataclasses import replace

import pytest
from bench_results import run, sample

from debzero.bench import scaling
from debzero.bench.tables import notes
from debzero.job.batch import Batch

ALONE = 500.0  # samples/s of one rank
NATIVE = {"records_steps": True}


def bench(alone=ALONE, micro=64, **changes):
    return sample(alone_runs=(run(8, alone, ranks=1),), batch=Batch(128, micro, 1, 2), **changes)


def test_each_configuration_is_held_against_one_rank():
    first, *rest = scaling.sentences(bench())
    assert first.startswith("One rank alone, plain DDP with the same micro-batch, trained 500 samples/s. 2 ranks "
                            "trained, times that: plain DDP 1.70 (85% of 2), ZeRO-1 1.40 (70% of 2), ZeRO-2 0.86 (43% ")
    assert [text[:6] for text in rest] == ["ZeRO-2", "ZeRO-3", "ZeRO-1", "ZeRO-2"]
    assert all("below 60%" in text for text in rest) and rest == notes(bench())[-4:]
    assert scaling.sentences(sample()) == [] and scaling.sentences(replace(bench(), configurations=())) == []


@pytest.mark.parametrize(("changes", "words"), [
    (NATIVE, "nvidia-smi topo -m"),
    ({**NATIVE, "job": {"zero": {"engine": "deepspeed"}}}, "remove zero.engine"),
    ({**NATIVE, "job": {"zero": {"engine": "auto", "bucket": 1000, "overlap": False, "live": 1000}}},
     "remove zero.bucket and zero.overlap, so"),
    ({"job": {"zero": {"engine": "native"}}}, "nvidia-smi topo -m"),
    ({**NATIVE, "micro": 2}, "only 4 ms"),
    ({}, "waits for the host in each layer")])
def test_the_cause_is_the_likely_one(changes, words):
    found = bench(**changes)
    two = next(row for row in found.configurations if row.name == "zero2")
    assert words in scaling.cause(found, two)
    assert "train.log" in scaling.cause(found, replace(two, runs=(run(8, 100, fell_out=True),)))
    offloaded = next(row for row in found.configurations if row.name == "zero2-cpu")
    assert "through the host" in scaling.cause(found, offloaded)
