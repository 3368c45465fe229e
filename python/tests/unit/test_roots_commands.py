"""What root runs in another user's folder: done as that user, or not at all."""
import json
import os
import stat
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from others import OTHER, give, in_child, public_folder
from support import JOB, SOURCE, Bench, changed
from warm import server

from debzero import cli
from debzero.base import privileges
from debzero.base.errors import InputError
from debzero.check import checks, fix
from debzero.job.reader import parse
from debzero.measure.records import MeasuredRun, Segment
from debzero.plan import table
from debzero.train import rank
from debzero.tune import job_file, tuning


@pytest.fixture
def place():
    """Root's jobs in a folder that everybody may enter, and beside them what is the other user's."""
    with public_folder() as folder:
        bench = Bench(folder)
        (folder / "others").mkdir()
        give(folder / "others")
        yield bench


def owners(folder):
    return {path.lstat().st_uid for path in [folder, *folder.rglob("*")]}


def test_root_trains_and_stops_as_the_owner_of_the_output(place):
    job = place.job(output="others/out", train__epochs=1, ranks=1)
    out = place.folder / "others" / "out"
    done = server().run(["train", str(job)], place.folder)
    assert done.returncode == 0, done.stdout
    assert owners(out) == {OTHER.pw_uid} and stat.S_IMODE(out.stat().st_mode) == 0o750
    done = place.quick("status", job)
    assert done.returncode == 0 and "Finished" in done.stdout, done.stdout
    (place.folder / "root").mkdir()
    job = place.job("roots", output="root/out", train__epochs=1, ranks=1)
    assert place.quick("check", job).returncode == 0 and not (place.folder / "root" / "out").exists()


def test_a_job_that_has_a_unit_is_never_trained_as_root(place, monkeypatch):
    """The unit's user could not write to what root had left."""
    (place.folder / "root").mkdir()
    job = place.job(output="root/out")
    assert isinstance(checks.check(job).job.output, str) and os.geteuid() == 0, "a job of root's own"
    monkeypatch.setattr(checks, "jobs_folder", lambda: place.folder)
    monkeypatch.setattr(checks, "stack", lambda: SimpleNamespace(user=OTHER.pw_name))
    answer = in_child(lambda: checks.check(job))
    assert f"the user {OTHER.pw_name} may not write to {place.folder}/root" in answer, answer
    monkeypatch.setattr(checks, "stack", lambda: SimpleNamespace(user="no-such-user"))
    assert in_child(lambda: (checks.check(job), os.geteuid())[1]) == "0", "the package is not installed"


def test_a_job_that_the_owner_may_not_read_is_refused_before_anything_starts(place):
    job = place.job(output="others/out")
    job.chmod(0o600)
    done = place.quick("train", job)
    assert done.returncode == 2 and "may not be read by this user" in " ".join(done.stdout.split()), done.stdout
    assert place.quick("check", job).returncode == 0, "as before it is put in its place"
    assert not (place.folder / "others" / "out").exists()


def test_an_overview_of_all_jobs_is_read_as_each_owner(place, monkeypatch, capsys):
    from debzero.run import status

    monkeypatch.setattr(status, "jobs_folder", lambda: place.folder)
    place.job("roots", output="root")
    place.job("others", output="others/out")
    secret = place.folder / "secret"
    secret.write_text('{"state": "finished", "job": "secret"}')
    secret.chmod(0o600)
    (place.folder / "others" / "out").mkdir()
    (place.folder / "others" / "out" / "status.json").symlink_to(secret)
    give(place.folder / "others")
    assert status.status(None, as_json=True, watch=False) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["others"]["state"] == "invalid" and "may not be read" in rows["others"]["words"]
    assert rows["roots"]["state"] == "not started" and os.geteuid() == 0


def test_fix_writes_with_the_rights_of_those_who_name_the_file(place):
    wrong = '{"train_batch_size": 32, "zero_optimization": {"stage": 1, "offload_param": {"device": "cpu"}}}\n'
    config = place.folder / "ds.json"
    config.write_text(wrong)
    job = place.job(output="out", deepspeed="./ds.json")
    for owner, may in ((OTHER.pw_uid, False), (0, True)):  # of the job that names root's file
        os.chown(job, owner, -1)
        answer = in_child(lambda: fix.fix_job(job, True))
        assert (config.read_text() != wrong) is may, answer
        assert answer.startswith("InputError") is not may, answer
    theirs = place.folder / "others" / "ds.json"
    theirs.write_text(wrong)
    give(theirs)
    assert in_child(lambda: fix.fix_json([theirs], None, True)) != "[]"
    assert theirs.read_text() != wrong and theirs.stat().st_uid == OTHER.pw_uid


MEASURED = MeasuredRun(segments=(Segment(10, 100, 1.0),), memory_bytes=(2**30,))


def test_tune_searches_as_the_owner_and_writes_roots_job_as_root(place, monkeypatch):
    users = []

    def measure(*_):
        users.append(os.getuid())
        return MEASURED

    monkeypatch.setattr(tuning, "measure", measure)
    job = place.job(output="others/out", train__micro_batch="auto")
    options = SimpleNamespace(job=job, ranks=None, search=["stage"], steps=1, warmup=1, limit=1, exhaustive=False,
                              name=None, dry_run=False, json=False)
    dry = {**vars(options), "dry_run": True, "job": place.job("first", output="root")}
    tuning.tune(SimpleNamespace(**dry))  # imports what is needed: the other user may not reach this Python
    users.clear()
    assert in_child(lambda: (tuning.tune(options), os.getuid(), set(users))) == str((0, OTHER.pw_uid, {OTHER.pw_uid}))
    values = yaml.safe_load(job.read_text())
    assert values["train"]["micro_batch"] != "auto" and "stage" in values["zero"]
    assert job.stat().st_uid == 0 and owners(place.folder / "others" / "out-tune") == {OTHER.pw_uid}


@pytest.mark.parametrize("values", [{"output": "/etc"}, {"train.micro_batch": [1]}, {"zero.stage": "x\ny: 1"},
                                    {"ranks": "a b"}, {"ranks": "9" * 2000}, {"train.micro_batch": None, "model": "x"}])
def test_what_is_no_result_of_a_search_is_not_written(place, values):
    job = place.job()
    before = job.read_text()
    assert in_child(lambda: job_file.RootsWriter(job).write(values)).startswith("UserError")
    assert job.read_text() == before


def test_a_search_that_finds_nothing_writes_nothing(place):
    job = place.job()
    before = job.read_text()
    job_file.RootsWriter(job).channel.close()
    assert job.read_text() == before
    assert os.waitpid(-1, 0)[1] == 0


def test_root_measures_in_its_own_folder_and_only_reads_the_outputs_as_their_owner(place):
    job = place.job(output="others/out")
    resolved = in_child(lambda: (checks.check(job, works_in=lambda _: place.folder / "bench").job.output, os.getuid()))
    assert resolved == str((str(place.folder / "others" / "out"), 0))


def test_a_rank_of_another_launcher_becomes_the_owner_as_well(place, monkeypatch):
    job = place.folder / "job.yml"
    job.write_text(yaml.safe_dump(changed(JOB, {"output": "others/out", "train.epochs": 1, "train.global_batch": 8})))
    monkeypatch.setenv("WORLD_SIZE", "1")
    arguments = SimpleNamespace(job=job, deepspeed=None)
    assert in_child(lambda: (rank._resolve(arguments).job.ranks, os.getuid())) == str((2, OTHER.pw_uid))


def test_where_others_may_write_root_does_not_work(place):
    (place.folder / "open").mkdir()
    (place.folder / "open").chmod(0o777)
    done = place.quick("train", place.job(output="open/out"))
    assert done.returncode == 1 and "others may write to it" in done.stdout and "Traceback" not in done.stdout
    with pytest.raises(InputError):
        checks.check(place.job(output="rows.csv/out"))


@pytest.mark.parametrize("command", [
    ["check", "{}/ds.json"], ["check", "{}/ds.json", "--fix"], ["check", "{}/job.yml"],
    ["check", "--convert", "{}/job.yml"], ["plan", "{}/job.yml"], ["status", "{}/job.yml"], ["stop", "{}/job.yml"],
    ["train", "{}/job.yml"], ["tune", "{}/job.yml"], ["bench", "{}/job.yml"], ["bench", "--render", "{}/ds.json"],
    ["bench", "--compare", "{}/ds.json", "{}/job.yml", "-o", "{}/../page.html"]])
def test_no_command_of_roots_follows_another_users_link(place, command):
    secret = place.folder / "secret"
    secret.write_text('{"train_batch_size": "secret", "output": "/root"}')
    secret.chmod(0o600)
    for name in ("ds.json", "job.yml"):
        (place.folder / "others" / name).symlink_to(secret)
    give(place.folder / "others")
    done = place.quick(*(word.format(place.folder / "others") for word in command))
    shown = " ".join(done.stdout.split())
    assert done.returncode == 2 and "Permission denied" in shown and "Traceback" not in shown, shown


@pytest.mark.parametrize(("key", "value"), [
    ("data.dataset", "others/rows.csv"), ("data.dataset", "others"), ("model", "./others/model"), ("model", "copied"),
    ("deepspeed", "./others/ds.json"), ("deepspeed", "./open.json"), ("file", None)])
def test_what_root_trains_on_as_root_nobody_else_may_change(place, key, value):
    others = place.folder / "others"
    (others / "rows.csv").write_text((place.folder / "rows.csv").read_text())
    (others / "train.csv").write_text((place.folder / "rows.csv").read_text())
    (others / "ds.json").write_text("{}")
    give(others)
    (place.folder / "copied").mkdir()  # by root, with the files' owners
    (place.folder / "copied" / "config.json").write_text("{}")
    os.chown(place.folder / "copied" / "config.json", OTHER.pw_uid, OTHER.pw_gid)
    (place.folder / "open.json").write_text("{}")
    (place.folder / "open.json").chmod(0o666)
    job = place.job(output="out", **({key.replace(".", "__"): value} if value else {}))
    if key == "file":
        os.chown(job, OTHER.pw_uid, -1)
    answer = in_child(lambda: checks.check(job))
    assert answer.startswith(f"InputError: {key}: {place.folder}"), answer
    assert "another user may change" in answer
    give(place.folder / "copied")
    assert not in_child(lambda: checks.check(place.job(output="others/out", **(
        {key.replace(".", "__"): value} if value else {})))).count("another user may change"), "as the output's owner"


@pytest.mark.parametrize("name", ["DEBZERO_TEXTFILE_DIR", "~/.cache", "~/.cache/torch_extensions"])
def test_root_trains_with_no_folder_of_another_users(place, name):
    """A cache in the home, too, may be a link to a larger disk: compiled code is loaded from it."""
    home = place.folder / "home"
    (home / ".cache").mkdir(parents=True)
    if name.startswith("~"):
        path = home / name[2:]
        if path.exists():
            path.rmdir()
        path.symlink_to(place.folder / "others")

    def examine():
        os.environ["HOME"] = str(home)
        os.environ["DEBZERO_TEXTFILE_DIR"] = str(place.folder / ("home" if name.startswith("~") else "others"))
        return checks.check(place.job(output="out"))

    answer = in_child(examine)
    assert answer.startswith(f"InputError: {name}: ") and f"{place.folder}" in answer, answer


def test_a_plan_is_made_as_the_owner_of_what_it_reads(place):
    (place.folder / "others" / "model").mkdir()
    give(place.folder / "others")
    jobs = [place.job("roots", output="out", deepspeed="./missing.json"),
            place.job("models", output="out", deepspeed="./missing.json", model="./others/model"),
            place.job("theirs", output="out", deepspeed="./missing.json")]
    os.chown(jobs[2], OTHER.pw_uid, -1)

    def user(job):
        with pytest.raises(InputError, match="missing.json"):
            table.plan_job(job, 1, {"gpu_memory": "40G", "ram": "1G", "nvme": None}, None, False)
        return os.getuid()

    assert user(jobs[0]) == 0  # and imports what is needed: the other user may not reach this Python
    assert [in_child(lambda job=job: user(job)) for job in jobs[1:]] == [str(OTHER.pw_uid)] * 2


def test_weights_are_converted_as_the_owner_of_their_folder_in_a_sandbox_that_root_starts(place):
    """A `systemd-run` that says who it is, in the place of the weights."""
    model, programs = place.folder / "others" / "model", place.folder / "bin"
    model.mkdir()
    programs.mkdir()
    (programs / "systemd-run").write_text("#!/bin/sh\ncat > /dev/null\nid -u; id -g\n")
    (programs / "systemd-run").chmod(0o755)
    (model / "pytorch_model.bin").write_text("weights")
    give(model)

    def convert():
        return subprocess.run([sys.executable, SOURCE / "convert.py", model], capture_output=True, text=True,
                              env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"})

    done = convert()
    assert done.returncode == 0, done.stderr
    assert owners(model) == {OTHER.pw_uid} and (model / "model.safetensors").read_text() == "0\n0\n"
    (place.folder / "secret").touch(0o600)
    (model / "pytorch_model.bin").unlink()
    (model / "pytorch_model.bin").symlink_to(place.folder / "secret")
    done = convert()
    assert done.returncode == 1 and "Permission denied" in done.stderr


def test_root_is_not_asked_to_give_away_what_a_link_leads_to(place):
    (place.folder / "root").mkdir()
    (place.folder / "others" / "out").symlink_to(place.folder / "root")
    give(place.folder / "others")
    for output, asked in (("others/out", False), ("root", True)):
        job = place.job(output=output)

        def problems(job=job):
            privileges.become_owner(place.folder / "others")
            return [problem.fix for problem in checks._output(parse(job)[0], str(job), None)]

        assert ("install -d" in in_child(problems)) is asked


def test_root_runs_no_program_from_another_users_path(place, monkeypatch):
    """As after `su`, which keeps it."""
    monkeypatch.setenv("PATH", f"{place.folder}/others:{os.environ['PATH']}")
    seen = []
    parser = SimpleNamespace(run=lambda options: seen.append(os.environ["PATH"]) or 0)
    assert cli._run(parser) == 0
    assert f"{place.folder}/others" not in seen[0] and "/usr/bin" in seen[0]


def test_a_folder_that_is_removed_during_its_check_is_a_problem(place, monkeypatch):
    def gone(path):
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(checks.shutil, "disk_usage", gone)
    job = place.job(output="others/out")
    assert "does not exist" in checks._in_output(parse(job)[0], str(job), None)[0].reason


def test_a_rank_of_roots_takes_no_deepspeed_json_of_another_users(place, monkeypatch):
    config = place.folder / "others" / "ds.json"
    config.write_text("{}")
    give(config)
    monkeypatch.setenv("WORLD_SIZE", "1")
    arguments = SimpleNamespace(job=place.job(output="out"), deepspeed=config)
    assert in_child(lambda: rank._resolve(arguments)).startswith(f"InputError: deepspeed: {config}")
