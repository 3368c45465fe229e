"""`debzero status` and `debzero stop`: what they say of runs in each state."""
import json

import pytest
import yaml
from run_report import REPORT
from support import stand_in

from debzero.base.errors import InputError
from debzero.base.files import write_json
from debzero.base.text import count_text
from debzero.run import open as opening
from debzero.run import status, stop
from debzero.run.folder import RunFolder


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Job files in each state that a run can be in."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    monkeypatch.setattr(status, "jobs_folder", lambda: folder)
    states = {
        "going": {"state": "training", "step": 3, "total_steps": 6, "loss": 0.5, "eta_seconds": 61.0},
        "done": {"state": "finished", "step": 6, "total_steps": 6},
        "broken": {"state": "failed", "step": 2, "total_steps": 6, "error": "out of memory\n  -> buy more"},
        "hopeless": {"state": "failed", "step": 2, "total_steps": 6, "error": "no",
                     "given_up": "failed 3 times in the same way"},
        "old": {"state": "stopped", "step": 0}}
    held = []
    for name, values in states.items():
        (folder / f"{name}.yml").write_text(yaml.safe_dump({"output": f"../{name}"}))
        held.append(RunFolder(str(tmp_path / name)))
        held[-1].lock()
        write_json(held[-1].status_file, values)
    write_json(held[1].report_file, REPORT.as_json())
    (folder / "new.yml").write_text("output: ../new\n")
    (folder / "unreadable.yml").write_text("a: [")
    return held


def test_status_without_a_name_lists_all_jobs(jobs, capsys):
    assert status.status(None, as_json=False, watch=False) == 0
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines == {
        "going": "training 3/6 loss 0.5000, ETA 1:01 -", "done": "finished 6/6 f1 0.9000 -",
        "broken": "failed 2/6 out of memory -", "hopeless": "failed 2/6 given up: failed 3 times in the same way -",
        "old": "stopped 0/? -", "new": "not started - -", "unreadable": lines["unreadable"]}
    assert lines["unreadable"].startswith("invalid - line ") and "is not YAML" in lines["unreadable"]
    assert status.status(None, as_json=True, watch=False) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["going"]["loss"] == 0.5 and rows["new"]["state"] == "not started"


def test_a_status_file_names_no_other_job(jobs, capsys):
    write_json(jobs[0].status_file, {"state": "training", "name": 5, "words": [], "output": None})
    assert status.status(None, as_json=False, watch=False) == 0
    assert "\ngoing " in capsys.readouterr().out


def test_status_says_that_a_run_is_given_up(jobs, capsys):
    assert status.status("hopeless", as_json=False, watch=False) == 1
    shown = capsys.readouterr().out
    assert "failed  at step 2/6" in shown and "given up: failed 3 times in the same way; fix the cause" in shown


def test_to_watch_needs_a_name(jobs):
    from debzero.base.errors import InputError

    with pytest.raises(InputError, match="follows one run") as caught:
        status.status(None, as_json=False, watch=True)
    assert "broken, done, going" in caught.value.problems[0].fix


def test_nothing_runs_and_stop_says_so(tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    assert stop.stop(f"{tmp_path}/sub/..") == 0
    assert capsys.readouterr().out == f"not running: no process is writing to {tmp_path}\n"


def test_a_run_whose_process_is_gone_has_failed(tmp_path):
    folder = RunFolder(str(tmp_path))
    write_json(folder.status_file, {"state": "training", "step": 3})
    assert folder.status().state == "failed" and folder.status().step == 3
    assert folder.status().error.startswith("the process ended without reporting an error")
    assert folder.written_status().state == "training"


@pytest.mark.parametrize("again", [False, True])
def test_another_runs_results_move_away_and_it_is_said(tmp_path, capsys, again):
    folder = RunFolder(str(tmp_path))
    before = stand_in("now" if again else "before").fingerprint
    write_json(folder.status_file, {"state": "finished", "fingerprint": before, "micro_batch": 4})
    folder.model.mkdir()
    assert opening.open_folder(stand_in(), folder, "job.yml", again)
    printed = capsys.readouterr().out
    assert f"the run that was in {tmp_path} is now in {tmp_path}/archive/" in printed
    assert ("this job begins" if again else "this job starts anew") in printed.split("\n")[0]
    assert not folder.model.exists() and list(tmp_path.glob("archive/*/model"))
    assert folder.status().micro_batch is None, "what another run has learned says nothing about this one"


def test_paths_are_shown_without_dots_unless_a_link_is_between(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    assert str(RunFolder(f"{tmp_path}/a/../out").folder) == f"{tmp_path}/out"
    assert str(RunFolder(f"{tmp_path}/link/../out").folder) == f"{tmp_path}/link/../out"


def test_one_thing_is_no_plural():
    assert [count_text(count, noun) for count, noun in ((1, "epoch"), (2, "epoch"), (1, "class"), (3, "class"))] == [
        "1 epoch", "2 epochs", "1 class", "3 classes"]
    assert count_text(2, "micro-batch") == "2 micro-batches"


def test_an_empty_name_is_not_the_current_folder():
    with pytest.raises(InputError, match="is empty"):
        status.locate("")
