"""The ratios of speeds in the plan are those of docs/benchmarks."""
import json

import pytest
from planning import BENCHMARKS

from debzero.plan.speed import DEEPSPEED, NATIVE, ONE_RANK, measured, relative_speed
from debzero.resolve.sharding import SHARDINGS, Sharding


@pytest.mark.parametrize("source", [ONE_RANK, DEEPSPEED, NATIVE])
def test_the_table_is_what_was_measured(source):
    found = json.loads((BENCHMARKS / source.file).read_text())
    assert found["speed_comparable"], "ranks that share a GPU"
    speeds = {row["name"]: row["summary"]["samples_per_second"]["median"] for row in found["configurations"]}
    assert {name: round(speed / speeds["baseline"], 2) for name, speed in speeds.items()} == source.ratios


def test_what_was_not_measured_has_no_speed():
    by_ranks = {ranks: {each.name: relative_speed(each, ranks, False) for each in SHARDINGS} for ranks in (1, 2, 8)}
    assert by_ranks[1]["zero3"] is None and by_ranks[2]["zero2-cpu"] is None and by_ranks[8] == by_ranks[2]
    assert measured(1, False) is ONE_RANK and by_ranks[2]["zero2"] == 0.82


def test_the_native_engine_has_speeds_of_its_own():
    native = {each.name: relative_speed(each, 2, True) for each in SHARDINGS}
    assert native["zero3"] > 1 > 0.2 > native["zero1-cpu"] and native["zero3-nvme"] is None
    assert relative_speed(Sharding(1), 1, True) is None, "DeepSpeed's was measured on one rank"
    assert relative_speed(Sharding(0), 1, True) == 1
