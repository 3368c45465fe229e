"""The ratios of speeds in the plan are those of docs/benchmarks."""
import json

import pytest
from planning import BENCHMARKS

from debzero.plan.speed import ONE_RANK, RANKS, measured, relative_speed
from debzero.resolve.sharding import SHARDINGS


@pytest.mark.parametrize("source", [ONE_RANK, RANKS])
def test_the_table_is_what_was_measured(source):
    found = json.loads((BENCHMARKS / source.file).read_text())
    assert found["speed_comparable"], "ranks that share a GPU"
    speeds = {row["name"]: row["summary"]["samples_per_second"]["median"] for row in found["configurations"]}
    assert {name: round(speed / speeds["baseline"], 2) for name, speed in speeds.items()} == source.ratios


def test_what_was_not_measured_has_no_speed():
    by_ranks = {ranks: {each.name: relative_speed(each, ranks) for each in SHARDINGS} for ranks in (1, 2, 8)}
    assert by_ranks[1]["zero3"] is None and by_ranks[2]["zero2-cpu"] is None and by_ranks[8] == by_ranks[2]
    assert measured(1) is ONE_RANK and by_ranks[2]["zero2"] == 0.82
