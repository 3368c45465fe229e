"""The table of playbooks/job.yml, and when it fails."""
from __future__ import annotations

import json

import job
import pytest


def unit(active: str, sub: str, text: str = "") -> dict:
    return {"rc": 0, "stdout": f"ActiveState={active}\nSubState={sub}\nStatusText={text}"}


def run(state: str, **values: object) -> dict:
    return {"rc": 0, "stdout": json.dumps({"state": state, **values})}


RUNNING, WAITING = unit("active", "running"), unit("activating", "start", "waiting for gpu2, which does not answer")
EXITED, GONE, FAILED = unit("active", "exited"), unit("inactive", "dead"), unit("failed", "failed")
AGAIN = unit("activating", "auto-restart")
TRAINS = run("training", step=120, total_steps=400, loss=0.51234)
STOPPED, FINISHED = run("stopped", step=120, total_steps=400), run("finished", step=400, total_steps=400)
UNREACHABLE = {"unreachable": True, "msg": "Task failed: Failed to connect to the host via ssh: no route\nto host"}


def test_a_run_that_trains_shows_its_step_and_loss():
    assert job.job_row(RUNNING, TRAINS, "status") == {
        "unit": "active (running)", "run": "training", "step": "120/400", "loss": "0.5123", "words": "", "problem": ""}


def test_a_host_that_waits_says_for_whom():
    row = job.job_row(WAITING, run("preparing", step=0), "started")
    assert row["words"] == "waiting for gpu2, which does not answer" and row["problem"] == ""
    assert (row["step"], row["loss"]) == ("0/?", "-")


@pytest.mark.parametrize(("systemd", "status", "wanted", "problem"), [
    (EXITED, FINISHED, "started", ""),
    (GONE, FINISHED, "status", ""),
    (EXITED, STOPPED, "status", "its unit is active (exited), its run stopped"),
    (GONE, run("not started"), "started", "its unit is inactive (dead), its run not started"),
    (AGAIN, run("failed", error="gpu2 was lost\nmore"), "status",
     "its unit is activating (auto-restart), its run failed: gpu2 was lost"),
    (FAILED, run("failed", error="x", given_up="the same error three times"), "status",
     "its unit is failed (failed), its run failed: the same error three times"),
    (FAILED, run("not started"), "status",
     "its unit is failed (failed), its run not started: it failed before the run began: its journal has the reason"),
    (GONE, {"rc": 2, "stdout": "", "stderr": "bert: name is no job\n"}, "status",
     "its unit is inactive (dead), its run unknown: bert: name is no job"),
    (GONE, STOPPED, "stopped", ""), (EXITED, STOPPED, "stopped", ""), (FAILED, STOPPED, "stopped", ""),
    (RUNNING, TRAINS, "stopped", "its unit is still active (running)"),
    (unit("deactivating", "stop-sigterm"), TRAINS, "stopped", "its unit is still deactivating (stop-sigterm)"),
    (AGAIN, TRAINS, "stopped", "its unit is still activating (auto-restart)")])
def test_it_fails_where_the_job_is_not_as_wanted(systemd, status, wanted, problem):
    assert job.job_row(systemd, status, wanted)["problem"] == problem


@pytest.mark.parametrize("wanted", ["started", "stopped", "status"])
def test_a_host_that_cannot_be_reached_is_a_row_and_a_failure(wanted):
    row = job.job_row(UNREACHABLE, {}, wanted)
    assert row["unit"] == "unreachable" and row["problem"] == "Failed to connect to the host via ssh: no route"


def test_a_host_that_runs_no_command_is_one_too():
    row = job.job_row({"failed": False, "msg": "Missing sudo password"}, {}, "started")
    assert (row["unit"], row["problem"]) == ("unknown", "Missing sudo password")


def test_the_table_has_a_line_for_each_host():
    rows = {"gpu1": job.job_row(RUNNING, TRAINS, "status"), "second": job.job_row(UNREACHABLE, {}, "status")}
    assert job.job_table(rows, ["gpu1", "second"]) == [
        "host    unit              run       step     loss    words",
        "gpu1    active (running)  training  120/400  0.5123",
        "second  unreachable       -         -        -       Failed to connect to the host via ssh: no route"]
