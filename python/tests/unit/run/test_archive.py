"""Runs that move to archive/ and back: whenever the process is killed, each is whole afterwards, and found."""
import os
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from support import stand_in

from debzero.base import files
from debzero.base.errors import InputError
from debzero.base.files import write_json
from debzero.job.schema import Train
from debzero.run import archive, checkpoint, decision
from debzero.run import open as opening
from debzero.run.folder import RunFolder

PARTS = ("checkpoints/step-3/weights", "model/weights", "metrics.jsonl", "report.json")


def put(folder: Path, name: str, state: str = "stopped") -> None:
    """A run of the stand-in `name`, with its name in each of its files."""
    job = stand_in(name)
    for part in PARTS:
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        (folder / part).write_text(name)
    write_json(folder / "status.json", {"state": state, "fingerprint": job.fingerprint, "step": 3, "total_steps": 9})
    write_json(folder / "run.json", {"fingerprint": job.fingerprint, "weights": job.identity.weights,
                                     "others": job.identity.others, "contents": {}, "steps_per_epoch": 3})


def whose(folder: Path) -> set:
    """The runs that the parts in a folder are of; None stands for a missing part."""
    return {(folder / part).read_text() if (folder / part).is_file() else None for part in PARTS}


def start(output: Path, name: str, resolved: Any = None) -> RunFolder:
    folder = RunFolder(str(output))
    try:
        opening.open_folder(resolved or stand_in(name), folder, "job.yml", again=False)
    finally:
        if folder._lock is not None:
            os.close(folder._lock)  # as the end of the process does
    return folder


class Killed(BaseException):
    """No code of debzero's catches it, but what removes a temporary file."""


def kill_at(monkeypatch, moment: int) -> None:
    """Before the call `moment` of those that rename, make or remove a name."""
    calls = count()

    def killing(call):
        def killed(*arguments, **options):
            if next(calls) == moment:
                raise Killed
            return call(*arguments, **options)

        return killed

    for name in ("replace", "mkdir", "rmdir"):
        monkeypatch.setattr(os, name, killing(getattr(os, name)))


@pytest.mark.parametrize("then", ["here", "wanted", "new"])
def test_a_kill_at_any_moment_leaves_both_runs_whole(tmp_path, monkeypatch, capsys, then):
    """`here` is in the folder and `wanted` in the archive when a start of `wanted` is killed; `then` is started."""
    monkeypatch.setattr(files, "sync", lambda path: None)
    for moment in count():
        output = tmp_path / str(moment)
        put(output, "here")
        put(output / "archive" / "2026-01-01T000000.000000", "wanted")
        (output / "notes.txt").write_text("mine")
        with monkeypatch.context() as patch:
            kill_at(patch, moment)
            try:
                start(output, "wanted")
                break
            except Killed:
                pass
        runs = {"here": stand_in("here").fingerprint, "wanted": stand_in("wanted").fingerprint}
        folder = RunFolder(str(output))
        if seen := folder.status():
            assert seen.fingerprint in runs.values() and folder.run_record().fingerprint in runs.values()
        start(output, then)
        where = {"output": whose(output), **{path.name: whose(path) for path in folder.archive.runs()}}
        assert where.pop("output") == ({None} if then == "new" else {then}), moment
        assert sorted(where.values(), key=str) == [{name} for name in sorted(runs) if name != then], moment
        assert not folder.archive.moving.exists() and (output / "notes.txt").is_file()
    assert moment > 15


def test_what_is_halfway_is_read_where_it_is(tmp_path):
    put(tmp_path, "here")
    folder = RunFolder(str(tmp_path))
    folder.archive.moving.mkdir(parents=True)
    for name in ("status.json", "run.json", "checkpoints", "model"):
        (tmp_path / name).rename(folder.archive.moving / name)
    assert folder.status().state == "stopped" and folder.run_record().steps_per_epoch == 3
    assert str(decision.decide(stand_in("here"), folder)) == "resumes after step 3 of 9"
    folder.put_back()
    assert whose(tmp_path) == {"here"}


def test_what_would_replace_something_is_kept_beside_it(tmp_path):
    put(tmp_path, "here")
    put(tmp_path / "archive" / archive.MOVING, "other")
    folder = RunFolder(str(tmp_path))
    folder.put_back()
    (run,) = folder.archive.runs()
    assert (whose(tmp_path), whose(run)) == ({"here"}, {"other"})


def test_a_run_on_another_file_system_stays_as_it_is(tmp_path, monkeypatch):
    put(tmp_path, "here")
    rename = archive.replace

    def crossing(source, target):
        if source.name == "model" and target.parent.name == archive.MOVING:
            raise OSError(archive.errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(archive, "replace", crossing)
    with pytest.raises(InputError, match="different file systems"):
        start(tmp_path, "new")
    assert whose(tmp_path) == {"here"} and not RunFolder(str(tmp_path)).archive.runs()


def test_a_finished_run_that_goes_on_is_kept_as_it_was(tmp_path, monkeypatch):
    """Whenever the process is killed; and neither twice nor as a second copy on the disk."""
    monkeypatch.setattr(files, "sync", lambda path: None)
    monkeypatch.setattr(checkpoint, "any_intact", lambda root: True)
    for moment in count():
        output = tmp_path / str(moment)
        put(output, "here", "finished")
        (output / "checkpoints" / "step-2").mkdir()
        longer = stand_in("here")
        longer.job.train = Train(epochs=9)
        longer.identity.others["train.epochs"] = 9
        with monkeypatch.context() as patch:
            kill_at(patch, moment)
            with suppress(Killed):
                start(output, "here", longer)
                break
        start(output, "here", longer)
        assert whose(output) == {"here"} and RunFolder(str(output)).status().state != "finished"
        (kept,) = RunFolder(str(output)).archive.runs()
        assert whose(kept) == {"here"} and [path.name for path in (kept / "checkpoints").iterdir()] == ["step-3"]
        (output / "metrics.jsonl").write_text("more")
        assert (kept / "metrics.jsonl").read_text() == "here"
        assert (kept / "model" / "weights").samefile(output / "model" / "weights")
        start(output, "here")
        assert RunFolder(str(output)).run_record().others == {"train.epochs": 3}
    assert moment > 8
