"""A job that fails must fail its test and show why; none may start before what it needs, or outlive the tests."""
from __future__ import annotations

import time
from contextlib import nullcontext

import background
import pytest
from background import AFTER, COMMANDS, IMAGE, Jobs, container


@pytest.fixture(autouse=True)
def logs(monkeypatch, tmp_path):
    monkeypatch.setattr(background, "LOGS", tmp_path / "logs")


def shell(**scripts):
    return {name: ["sh", "-c", script] for name, script in {IMAGE: "true", **scripts}.items()}


def test_a_job_waits_for_the_image_and_for_what_it_needs(tmp_path):
    marks = {name: f"{tmp_path}/{name}" for name in (IMAGE, "wheel")}
    commands = shell(image=f"sleep 0.3; touch {marks[IMAGE]}",
                     wheel=f"test -e {marks[IMAGE]} && sleep 0.3 && touch {marks['wheel']}",
                     other=f"test -e {marks[IMAGE]} && test ! -e {marks['wheel']}", user=f"test -e {marks['wheel']}")
    jobs = Jobs({"wheel", "other", "user"}, commands, {"user": ["wheel"]})
    for name in ("wheel", "other", "user"):
        jobs.succeed(name)
    assert set(jobs.seconds) == set(commands)


def test_a_job_that_waits_keeps_no_other_from_running(tmp_path):
    ended = tmp_path / "ended"
    commands = shell(wheel=f"until test -e {ended}; do sleep 0.05; done", user="true", other=f"touch {ended}")
    jobs = Jobs({"wheel", "user", "other"}, commands, {"user": ["wheel"]}, at_once=2, limit=20)
    for name in ("wheel", "user", "other"):
        jobs.succeed(name)


def test_a_failure_shows_the_end_of_the_log_and_does_not_spread():
    jobs = Jobs({"bad", "good"}, shell(bad="seq 1000; exit 3", good="true"), {"good": ["bad"]})
    with pytest.raises(pytest.fail.Exception, match=r"bad failed; .*bad.log ends with\n851\n(.*\n)+1000\n$"):
        jobs.succeed("bad")
    jobs.succeed("good")


def test_a_job_that_hangs_is_stopped_and_its_container_removed(tmp_path):
    destroy = ["sh", "-c", f"echo $DEBZERO_CONTAINER >{tmp_path}/removed"]
    jobs = Jobs({"slow"}, shell(slow="echo hanging; sleep 60"), {}, {}, destroy, limit=1)
    with pytest.raises(pytest.fail.Exception, match=r"slow was stopped after 1 s; .*\nhanging\n"):
        jobs.succeed("slow")
    assert (tmp_path / "removed").read_text() == f"{container('slow')}\n"


def test_jobs_that_share_a_container_run_one_after_the_other_and_remove_it_once(tmp_path):
    story = tmp_path / "story"
    note = f"$DEBZERO_CONTAINER keep=$DEBZERO_KEEP >>{story}"
    commands = shell(one=f"sleep 0.3; echo one {note}; exit 1", two=f"echo two {note}", three=f"echo three {note}")
    hosts = {"one": "both", "two": "both"}
    jobs = Jobs({"one", "two"}, commands, {}, hosts, ["sh", "-c", f"echo destroy {note}"])
    for name, ends in (("one", pytest.raises(pytest.fail.Exception, match="one failed")), ("two", nullcontext())):
        with ends:
            jobs.succeed(name)
    assert story.read_text().splitlines() == [
        f"{words} {container('both')} keep={kept}" for words, kept in (
            ("destroy", ""), ("one", "1"), ("two", "1"), ("destroy", ""))]

    story.unlink()
    jobs = Jobs({"two", "three"}, commands, {}, hosts, ["sh", "-c", f"echo destroy {note}"], at_once=1)
    for name in ("two", "three"):
        jobs.succeed(name)
    assert story.read_text().splitlines() == [f"two {container('both')} keep=", f"three {container('three')} keep="]


def test_what_a_test_does_to_its_environment_does_not_reach_a_job(monkeypatch, tmp_path):
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    commands = shell(first=f"touch {begun}; until test -e {ended}; do sleep 0.05; done", second="true")
    jobs = Jobs({"first", "second"}, commands, {}, at_once=1)
    while not begun.exists():
        time.sleep(0.01)
    monkeypatch.setenv("PATH", str(tmp_path))
    ended.touch()
    jobs.succeed("second")


def test_a_command_that_is_not_there_fails():
    jobs = Jobs({"gone"}, {IMAGE: ["true"], "gone": ["no-such-command"]}, {})
    with pytest.raises(FileNotFoundError):
        jobs.succeed("gone")


def test_nothing_outlives_the_tests(tmp_path):
    started, ended = tmp_path / "started", tmp_path / "ended"
    commands = shell(first=f"touch {started}; sleep 60; touch {ended}", waits=f"touch {ended}", queues=f"touch {ended}")
    jobs = Jobs({"first", "waits", "queues"}, commands, {"waits": ["first"]}, at_once=1)
    while not started.exists():
        time.sleep(0.01)
    begun = time.monotonic()
    jobs.stop()
    assert time.monotonic() - begun < 50 and not ended.exists() and not jobs.running
    assert jobs.results["waits"].cancelled() and jobs.results["queues"].cancelled()


def test_nothing_starts_without_a_test_that_asks_for_it():
    jobs = Jobs(set())
    assert not jobs.results
    jobs.stop()


def test_what_a_job_waits_for_starts_before_it():
    order = list(COMMANDS)
    assert order[0] == IMAGE and {*AFTER} < {*order}
    assert [name for name, needs in AFTER.items() for need in needs if order.index(need) > order.index(name)] == []
