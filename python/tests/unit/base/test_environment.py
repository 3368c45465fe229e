"""The DEBZERO_* variables: what is written is what is read, and a bad value is one clear error."""
from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from support import SOURCE

from debzero.base.environment import NAMES, Environment, environment
from debzero.base.errors import InputError

ALL = Environment(gpus=2, launcher_pid=77, measured=True, memory_cap_bytes=2**33, micro_batch=4, watchdog_seconds=60,
                  favour="speed", textfile_folder=Path("/var/lib/node exporter"), meeting_folder=Path("/run/ranks"),
                  cluster_file=Path("/etc/cluster.yml"))


@pytest.mark.parametrize("values", [Environment(), ALL, Environment(measured=True), Environment(gpus=1)])
def test_what_is_written_is_what_is_read(values):
    assert environment(values.variables()) == values


def test_every_value_has_a_variable_and_is_written_when_it_is_set():
    assert set(NAMES) == {field.name for field in fields(Environment)}
    assert set(ALL.variables()) == set(NAMES.values()) and Environment().variables() == {}


def test_the_process_s_own_environment_is_the_default(monkeypatch):
    for name in NAMES.values():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEBZERO_GPUS", "3")
    assert environment() == Environment(gpus=3)


def test_an_empty_variable_is_unset():
    assert environment(dict.fromkeys(NAMES.values(), "")) == Environment()


@pytest.mark.parametrize("value", ["two", "-1", "1.5", "2 ", "²"])
def test_a_value_that_is_no_number_is_one_problem_that_names_the_variable(value):
    with pytest.raises(InputError) as caught:
        environment({"DEBZERO_GPUS": value, "DEBZERO_MICRO_BATCH": "4"}, "/etc/debzero/host.env")
    (problem,) = caught.value.problems
    assert (problem.file, problem.key) == ("/etc/debzero/host.env", "DEBZERO_GPUS")
    assert repr(value) in problem.reason and problem.fix


def test_what_buffers_are_for_is_memory_or_speed():
    with pytest.raises(InputError) as caught:
        environment({"DEBZERO_FAVOUR": "size"})
    (problem,) = caught.value.problems
    assert problem.key == "DEBZERO_FAVOUR" and "memory or speed, not 'size'" in problem.reason


def test_a_number_with_thousands_of_digits_is_named_in_short():
    with pytest.raises(InputError) as caught:
        environment({"DEBZERO_GPUS": "9" * 5000})
    assert len(caught.value.problems[0].reason) < 80


@pytest.mark.parametrize(("value", "measured"), [("0", False), ("1", True), ("", False)])
def test_a_run_is_measured_for_1_alone(value, measured):
    assert environment({"DEBZERO_MEASURED": value}).measured is measured
    with pytest.raises(InputError, match="DEBZERO_MEASURED"):
        environment({"DEBZERO_MEASURED": "no"})


def test_all_bad_values_are_reported_at_once():
    with pytest.raises(InputError) as caught:
        environment({"DEBZERO_GPUS": "x", "DEBZERO_MEMORY_CAP": "40G"})
    assert [problem.key for problem in caught.value.problems] == ["DEBZERO_GPUS", "DEBZERO_MEMORY_CAP"]


def test_no_other_module_reads_a_variable():
    """The name of each is typed once; help texts may show it after a dollar sign."""
    package = SOURCE / "debzero"
    typed = {f"{path.relative_to(package)}: {name}" for path in package.rglob("*.py")
             for name in re.findall(r"[\"'](DEBZERO_[A-Z_]+)[\"']", path.read_text())
             if path.name != "environment.py"}
    assert typed == set()
