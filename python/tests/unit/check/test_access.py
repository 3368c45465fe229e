"""What this user, or nobody, may read is reported as such: never as a traceback, and never as missing."""
import json
import subprocess

import pytest
from support import JOB, POWERLESS, changed, stand_in

from debzero.base.errors import InputError, UserError
from debzero.check import checks
from debzero.run import open as opening
from debzero.run import status
from debzero.run.folder import RunFolder

# One process for all jobs: it starts without root's powers, and the imports take a second or two.
CHECK_EACH = """
import contextlib, io, json, sys
from debzero.cli import main

answers = []
for job in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        answers.append([main(["check", job]), errors.getvalue()])
print(json.dumps(answers))
"""
CLOSED = [
    {"data__dataset": "closed/rows.csv"}, {"data__dataset": "unlisted"}, {"model": "./closed/model"},
    {"model": "./unlisted"}, {"output": "closed/out"},
    {"zero__stage": 3, "zero__offload_optimizer": "nvme", "zero__nvme_path": "closed/nvme"}]


def test_what_this_user_may_not_enter_is_named(bench):
    for name, mode in (("closed", 0o000), ("unlisted", 0o300)):
        (bench.folder / name).mkdir()
        (bench.folder / name / "train.csv").write_text("text,label\n")
        (bench.folder / name / "config.json").write_text("{}")
        (bench.folder / name).chmod(mode)
    jobs = [bench.job(f"job-{number}", **changes) for number, changes in enumerate(CLOSED)]
    done = bench.run(*jobs, module=("-c", CHECK_EACH), through=POWERLESS)
    assert done.returncode == 0, done.stderr
    for changes, (code, printed) in zip(CLOSED, json.loads(done.stdout)):
        assert code == 2 and printed.count("may not") == 1, printed
        assert list(changes)[-1].replace("__", ".") in printed, printed


@pytest.mark.parametrize("key", ["model", "data.dataset"])
def test_a_name_that_no_file_can_have_causes_no_traceback(bench, key):
    path = bench.job()
    path.write_text(json.dumps(changed(JOB, {key: "/a\0b"})))
    with pytest.raises(InputError) as found:
        checks.check(path)
    assert [p.key for p in found.value.problems] == [key]


@pytest.mark.parametrize("key", ["output", "model", "data.dataset", "deepspeed", "zero.nvme_path"])
def test_a_name_that_is_too_long_is_named(bench, key, monkeypatch):
    monkeypatch.setattr("debzero.check.operators.unavailable", lambda *_: "")
    path = bench.job()
    offload = {"zero.stage": 3, "zero.offload_optimizer": "nvme"} if key == "zero.nvme_path" else {}
    path.write_text(json.dumps(changed(JOB, {**offload, key: "long" * 75})))
    with pytest.raises(InputError, match="File name too long") as found:
        checks.check(path)
    assert [p.key for p in found.value.problems] == [key]


def test_a_job_in_the_users_home_is_found_as_it_was_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    job = tmp_path / "job.yml"
    for output, folder in (("~/out", tmp_path / "out"), ("~nobody-here/out", tmp_path / "~nobody-here" / "out")):
        job.write_text(f"output: {output}\n")
        assert status.locate(str(job)).folder == folder


@pytest.mark.parametrize("command", ["status", "stop"])
def test_what_cannot_be_seen_is_not_reported_as_missing(bench, command):
    """A run that another user holds would look like none."""
    job = bench.job()
    out = RunFolder(str(bench.output()))
    out.lock()
    out.begin(str(job), stand_in().identity)
    for path, mode in ((out.folder, 0o000), (out.lock_file, 0o000), (out.status_file, 0o000)):
        before = path.stat().st_mode
        path.chmod(mode)
        for name in (job, out.folder):
            done = bench.run(command, name, through=POWERLESS)
            assert done.returncode == 2 and "may not" in done.stderr and not done.stdout, done.stdout + done.stderr
        path.chmod(before)
    for name in ("x" * 300, bench.job("long", output="x" * 300)):
        done = bench.quick_apart(command, name)
        assert done.returncode == 2 and "File name too long" in " ".join(done.stderr.split()), done.stderr
    done = bench.quick_apart(command, bench.job("below", output="rows.csv/out"))
    assert "Traceback" not in done.stderr, done.stderr


def test_a_disk_that_is_full_before_the_start_may_have_room_at_the_next(bench):
    disk = bench.folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    try:
        subprocess.run(["dd", "if=/dev/zero", f"of={disk}/filler", "bs=4k"], capture_output=True)  # until it is full
        out = RunFolder(str(disk / "new" / "out"))
        with pytest.raises(UserError, match="is full"):
            opening.open_folder(stand_in(), out, "tiny.yml", False)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
    with pytest.raises(InputError, match="may write to"):
        RunFolder(str(bench.folder / "rows.csv" / "out")).lock()


def test_a_status_that_no_run_wrote_is_none(tmp_path, capsys):
    for text in ('{"step": 3}', "[1]", '{"state": null}'):
        (tmp_path / "status.json").write_text(text)
        assert status.status(str(tmp_path), as_json=False, watch=False) == 1
        assert "not started" in capsys.readouterr().out


def test_what_is_watched_does_not_mix_with_the_json(tmp_path, monkeypatch, capsys):
    out = RunFolder(str(tmp_path))
    out.lock()
    out.begin("job.yml", stand_in().identity)
    monkeypatch.setattr(status.time, "sleep", lambda _: out.end("stopped"))
    assert status.status(str(tmp_path), as_json=True, watch=True) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["state"] == "stopped" and "preparing" in printed.err


def test_a_variable_that_a_start_would_refuse_is_named_before(bench, monkeypatch):
    monkeypatch.setenv("DEBZERO_GPUS", "abc")
    with pytest.raises(InputError) as caught:
        checks.check(bench.job())
    assert [problem.key for problem in caught.value.problems] == ["DEBZERO_GPUS"]
