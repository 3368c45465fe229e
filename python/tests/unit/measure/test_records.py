"""The reader of measurements: what it takes, and what it says about a bad file."""
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from bench_results import HOST, run

from debzero.base.errors import InputError
from debzero.measure.records import HostFacts, MeasuredRun, Segment, read_object, read_record

FILE = Path("results.json")
WRITTEN = json.loads(json.dumps(asdict(run())))


def test_a_record_is_read_as_it_was_written():
    assert read_record(MeasuredRun, WRITTEN, FILE, "") == run()
    assert read_record(HostFacts, {**asdict(HOST), "a new key": 1}, FILE, "") == HOST
    assert read_record(HostFacts, {**asdict(HOST), "driver": None}, FILE, "").driver is None


@pytest.mark.parametrize(("changes", "key", "reason"), [
    ({"kind": "guessed"}, "kind", "must be one of measured, memory, refused, time, failed, not 'guessed'"),
    ({"host_bytes": 1.5}, "host_bytes", "must be a whole number, not a number"),
    ({"host_bytes": True}, "host_bytes", "must be a whole number, not true or false"),
    ({"memory_bytes": "8 GiB"}, "memory_bytes", "must be a list, not a text"),
    ({"memory_bytes": [1, None]}, "memory_bytes[1]", "must be a whole number, not null"),
    ({"segments": [{"steps": 1, "samples": 2}]}, "segments[0].seconds", "is missing"),
    ({"segments": [7]}, "segments[0]", "must be an object, not a whole number")])
def test_a_bad_record_is_named_by_file_key_and_reason(changes, key, reason):
    with pytest.raises(InputError) as raised:
        read_record(MeasuredRun, {**WRITTEN, **changes}, FILE, "measure again")
    (problem,) = raised.value.problems
    assert (problem.file, problem.key, problem.reason, problem.fix) == ("results.json", key, reason, "measure again")


@pytest.mark.parametrize(("text", "reason"), [("{", "is not JSON"),
                                              pytest.param("[" * 100000, "is nested too deeply", id="deep"),
                                              ("[]", "must hold an object, not a list"),
                                              (None, "does not exist")])
def test_a_file_without_an_object_is_bad_input(tmp_path, text, reason):
    file = tmp_path / "results.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError) as raised:
        read_object(file, "measure again")
    assert reason in raised.value.problems[0].reason and raised.value.problems[0].file == str(file)


def test_a_speed_is_that_of_all_segments():
    slow, fast = Segment(steps=10, samples=640, seconds=9), Segment(steps=10, samples=640, seconds=1)
    run = MeasuredRun(segments=(slow, fast), memory_bytes=(1,))
    assert (run.samples_per_second, run.steps_per_second) == (128, 2)  # not the mean of the segments' speeds


@pytest.mark.parametrize(("change", "reason"), [
    ({"segments": []}, "needs segments that took time"), ({"memory_bytes": []}, "each rank's memory"),
    ({"segments": [{"steps": 1, "samples": 8, "seconds": 0}]}, "needs segments that took time"),
    ({"segments": [{"steps": 1, "samples": 8, "seconds": float("inf")}]}, "must be a number under"),
    ({"memory_bytes": [10**400]}, "must be a number under")])
def test_figures_that_no_run_can_have_are_named(change, reason):
    values = {"kind": "measured", "segments": [{"steps": 1, "samples": 8, "seconds": 1.0}], "memory_bytes": [1],
              **change}
    with pytest.raises(InputError, match=reason):
        read_record(MeasuredRun, values, Path("results.json"), "measure it again")
