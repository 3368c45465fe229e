"""An output folder: what is debzero's there, what is anybody else's, and which failures count."""
import errno
import os
from types import SimpleNamespace

import pytest
from support import stand_in

from debzero.base.errors import InputError, PassingError, PassingProblem, Problem, passing
from debzero.base.files import write_json
from debzero.check import checks
from debzero.run import open as opening
from debzero.run.folder import KEPT, RUNS, RunFolder, is_runs
from debzero.run.records import ErrorNote
from debzero.train import launch


def fill(folder, *names):
    for name in names:
        path = folder / name.rstrip("/")
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)


def start(folder, again=False):
    return opening.open_folder(stand_in(), RunFolder(str(folder)), "job.yml", again)


FOREIGN = ("thesis.tex", "models/", ".git/", ".notes.new", ".model.new/", "status.json.bak", "debzero.prom",
           "lost+found/", "results.json")


@pytest.mark.parametrize("again", [False, True])
def test_only_what_debzero_made_moves_to_the_archive(tmp_path, again):
    fill(tmp_path, *FOREIGN, "checkpoints/step-1/weights", "checkpoints/.step-2/weights", "model/", "metrics.csv",
         "debzero-mrpc.prom", "data/rows", "tensorboard/", ".status.json.0123456789abcdef.new",
         ".model.0123456789abcdef.new/", ".error.json")
    before = stand_in("now" if again else "before").fingerprint
    write_json(tmp_path / "status.json", {"state": "stopped", "fingerprint": before})
    assert start(tmp_path, again=again)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {name.rstrip("/") for name in FOREIGN} | {".lock", "data", "archive", "status.json", "run.json"}
    (archive,) = (tmp_path / "archive").iterdir()
    assert {path.name for path in archive.iterdir()} == {
        "checkpoints", "model", "metrics.csv", "debzero-mrpc.prom", "tensorboard", "status.json", ".error.json"}


def test_a_resumed_run_keeps_its_own_and_loses_what_a_kill_left(tmp_path):
    fill(tmp_path, "checkpoints/step-1/weights", "checkpoints/.step-2/weights", ".model.0123456789abcdef.new/weights")
    (tmp_path / ".model.1123456789abcdef.new").symlink_to(tmp_path / "checkpoints")
    write_json(tmp_path / "status.json", {"state": "failed", "fingerprint": stand_in().fingerprint})
    assert start(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "status.json", "run.json", ".lock"}


def test_again_begins_anew_even_where_the_status_is_damaged(tmp_path):
    fill(tmp_path, "checkpoints/step-1/weights", "status.json", ".lock")
    assert start(tmp_path, again=True)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(("names", "named"), [
    (["thesis.tex"], "thesis.tex"), (["model/", "train.py"], "model, train.py"), (["data/", "notes"], "notes"),
    (["data/raw/"], "data/raw"), (["data/rows.csv", "data/digests.json"], "data/rows.csv"),
    ([f"file-{number}" for number in range(9)], "file-0, file-1, file-2, file-3, file-4 and 4 more")])
def test_a_folder_of_something_else_is_refused_with_what_is_there(bench, names, named):
    out = bench.output()
    fill(out, *names)
    with pytest.raises(InputError) as caught:
        checks.check(bench.job())
    (problem,) = caught.value.problems
    assert problem.key == "output" and f"it holds {named}" in problem.reason and "empty" in problem.fix
    before = sorted(out.rglob("*"))
    with pytest.raises(InputError, match="debzero never ran there"):
        start(out)
    assert sorted(out.rglob("*")) == before, "a refused start leaves no mark that would let the next one in"
    assert bench.quick("train", bench.job()).returncode == 2


@pytest.mark.parametrize("names", [
    [], ["lost+found/"], ["data/digests.json"], [".snapshots/", ".directory"], ["archive/"], ["thesis.tex", ".lock"],
    ["thesis.tex", "status.json"]])
def test_an_empty_disk_and_a_folder_that_has_a_run_are_not_foreign(tmp_path, names):
    fill(tmp_path, *names)
    assert RunFolder(str(tmp_path)).foreign() == []
    assert start(tmp_path)


def test_every_name_that_a_run_leaves_is_known(trained):
    """Else a later run would mix with it."""
    trained.train("names", train__epochs=1)
    left = {path.name for path in trained.output("names").iterdir()}
    assert {"model", "report.json", "checkpoints", "metrics.csv", "tensorboard"} <= left
    assert {name for name in left if not is_runs(name)} == {".lock", "data"} <= set(KEPT)
    assert all(is_runs(name) for name in RUNS)
    modes = {path.stat().st_mode & 0o777 for path in [trained.output("names"), *trained.output("names").rglob("*")]
             if path.suffix != ".prom"}  # which is for other users' programs
    assert modes == {0o750, 0o640, 0o600}, "the data may be private"


OWN, OUTSIDE = ErrorNote(rank=0, error="own"), ErrorNote(rank=1, error="killed", passing=True)


def test_only_the_jobs_own_failures_count(tmp_path):
    folder = RunFolder(str(tmp_path))
    notes = (OUTSIDE, OUTSIDE, OUTSIDE, OUTSIDE, OWN, OUTSIDE, OWN, OWN)
    assert [launch._record_end(folder, 1, note) for note in notes] == [1, 1, 1, 1, 1, 1, 1, 3]


@pytest.mark.parametrize(("signal", "outside"), [("KILL", True), ("TERM", True), ("HUP", True), ("SEGV", False),
                                                 ("ABRT", False), ("BUS", False), ("ILL", False)])
def test_a_signal_from_outside_is_no_failure_of_the_job(tmp_path, signal, outside):
    import signal as signals

    folder = RunFolder(str(tmp_path))
    failed = {1: SimpleNamespace(exitcode=-getattr(signals, f"SIG{signal}"), pid=5, timestamp=0)}
    assert launch._exit_code(failed, folder, SimpleNamespace(reason="")) == 1
    assert folder.error_note().passing is outside and f"SIG{signal}" in folder.error_note().error


def test_too_little_room_at_a_restart_may_pass(bench, monkeypatch):
    """systemd starts a job again that ends with 1, and never one that ends with 2."""
    usage = SimpleNamespace(total=2**40, free=1000)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError) as caught:
        checks.check(bench.job())
    assert isinstance(passing(caught.value), PassingError) and "MiB free" in str(passing(caught.value))
    usage.total = 2000  # as much will never be free
    with pytest.raises(InputError) as caught:
        checks.check(bench.job())
    assert passing(caught.value) is None
    both = InputError([Problem("f", "k", "r", "x"), PassingProblem("f", "k", "r", "x")])
    assert passing(both) is None
    assert passing(InputError([PassingProblem("f", "k", "r", "x"),
                               Problem("f", "k", "r", "x", severity="warning")])) is not None


@pytest.mark.parametrize(("number", "kind"), [
    (errno.ENOSPC, PassingError), (errno.EDQUOT, PassingError), (errno.EIO, PassingError), (errno.ESTALE, PassingError),
    (errno.ENFILE, PassingError), (errno.EACCES, InputError), (errno.EROFS, InputError)])
def test_what_keeps_a_folder_from_being_written_may_pass_or_not(tmp_path, monkeypatch, number, kind):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    folder = RunFolder(str(tmp_path / "out"))
    monkeypatch.setattr(type(folder.folder), "mkdir", fail)
    with pytest.raises(kind):
        folder.lock()
