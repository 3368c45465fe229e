"""`debzero status`, of one run and of all jobs."""
import json

import pytest
import yaml
from finished_run import REPORT

from debzero.base.files import write_json
from debzero.run import status
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


def test_status_says_that_a_run_is_given_up(jobs, capsys):
    assert status.status("hopeless", as_json=False, watch=False) == 1
    shown = capsys.readouterr().out
    assert "failed  at step 2/6" in shown and "given up: failed 3 times in the same way; fix the cause" in shown


def test_to_watch_needs_a_name(jobs):
    from debzero.base.errors import InputError

    with pytest.raises(InputError, match="follows one run") as caught:
        status.status(None, as_json=False, watch=True)
    assert "broken, done, going" in caught.value.problems[0].fix
