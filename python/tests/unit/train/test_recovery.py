"""Nothing that is killed, stopped, cut off or damaged may cost more than the steps since the last checkpoint, or change
the outcome."""
import errno
import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from running import end, launch, ranks_of, start, step_of, wait_for
from support import newest

from debzero.base import files
from debzero.check.checks import _output
from debzero.job.schema import Checkpoint, Job
from debzero.model.checks import bytes_needed
from debzero.run import checkpoint
from debzero.run.records import RunIdentity, TrainingState
from debzero.train.saving import Saver

LONG = {"train__epochs": 4, "train__log_every": 5, "model__hidden_dropout_prob": 0.1}  # 52 steps
VICTIMS = ["rank", "launcher", "everything"]
KILLS = int(os.environ.get("DEBZERO_TEST_KILLS", "300"))  # of the long test, over all stages


def weights(bench, name):
    return (bench.output(name) / "model" / "model.safetensors").read_bytes()


def undisturbed(bench, stage):
    """The name of a run at this stage that nothing happened to."""
    name = f"whole-{stage}"
    if not bench.output(name).exists():
        bench.train(name, zero__stage=stage, **LONG)
    return name


@pytest.mark.parametrize("stage", ["none", 2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_stopped_run_saves_its_last_step_and_resumes_to_the_same_weights(trained, stage):
    whole, name = undisturbed(trained, stage), f"stopped-{stage}"
    job = trained.job(name, zero__stage=stage, **LONG)
    process = start(trained, job)
    wait_for(process, lambda: step_of(trained, name) >= 10)
    process.terminate()
    said = end(process)
    assert process.returncode == 143, said
    kept = checkpoint.tags(trained.output(name) / "checkpoints")
    stopped_at = int(kept[-1].split("-")[1])
    assert stopped_at >= 10
    assert files.read_json(trained.output(name) / "status.json")["state"] == "stopped"
    (trained.folder / "rows.csv").touch()
    done = trained.quick("train", job)
    assert done.returncode == 0 and f"resuming from step {stopped_at}\n" in done.stdout, done.stdout
    assert weights(trained, name) == weights(trained, whole)
    assert trained.losses(name) == trained.losses(whole)


def kill_settings(stage, count):
    return {"zero__stage": stage, "train__epochs": 10 + 3 * count, "train__log_every": 10, "train__evaluate_every": 200,
            "model__hidden_dropout_prob": 0.1, "checkpoint": {"steps": 20}}


def kill_and_finish(bench, begin, stage, count):
    """Kill the job in bench `count` times at random moments, which are printed, then let it end. Each victim has its
    turn. `begin` starts the job."""
    job, dice, victims = bench.job("killed", **kill_settings(stage, count)), random.Random(), list(VICTIMS)
    for number in range(count):
        (bench.output("killed") / "status.json").unlink(missing_ok=True)  # it has the step of the run before
        begun = int(next(reversed(checkpoint.tags(bench.output("killed") / "checkpoints")), "step-0").split("-")[1])
        if number % len(victims) == 0:
            dice.shuffle(victims)
        trains = number < len(victims) or dice.random() < 0.9
        process = begin(bench, job)
        if trains:
            wanted, patience = begun + dice.randint(1, 30), dice.uniform(0, 0.15)
            wait_for(process, lambda: step_of(bench, "killed") >= wanted)  # noqa: B023 - called at once
        else:
            patience = dice.uniform(0, 5)  # while it starts
        time.sleep(patience)
        print(f"kill {number + 1}: {victims[number % len(victims)]} after {patience:.2f} s at step "
              f"{step_of(bench, 'killed')} (from {begun})", flush=True)
        printed = kill(process, victims[number % len(victims)], trains)
        assert ("resuming from step" in printed) == (begun > 0) or not trains, printed
    return bench.quick("train", job)


def kill(process, victim, trains):
    """Kill the victim, and see that nothing else stays; what the run printed."""
    alive = process.poll() is None
    assert alive, process.stdout.read()
    ranks = ranks_of(process)
    assert len(ranks) == 2 or not trains
    lost = random.choice(ranks) if victim == "rank" and ranks else None
    if lost:
        lost.kill()
    elif victim == "launcher":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    printed = end(process)
    assert process.returncode == (1 if lost else -signal.SIGKILL), printed
    left = psutil.wait_procs(ranks, timeout=20)[1]
    assert not [rank for rank in left if rank.status() != psutil.STATUS_ZOMBIE]
    named = re.findall(r"(rank \d) was killed by SIGKILL", printed)
    assert named == ([f"rank {ranks.index(lost)}"] if lost else []), printed
    return printed


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("begin", "stage", "count"), [
    (start, 2, len(VICTIMS)), pytest.param(launch, 2, 2 * len(VICTIMS), marks=pytest.mark.long),
    *(pytest.param(start, stage, KILLS // 3, marks=pytest.mark.long) for stage in (1, 2, 3))],
    ids=["few", "launched", "1", "2", "3"])
def test_kills_at_random_moments_leave_nobody_behind_and_end_in_the_same_weights(bench, begin, stage, count):
    """DEBZERO_TEST_KILLS sets how many the long tests have; `launched`: as users do."""
    bench.train("whole", **kill_settings(stage, count))
    done = kill_and_finish(bench, begin, stage, count)
    assert done.returncode == 0 and "resuming from step" in done.stdout, done.stdout
    assert weights(bench, "killed") == weights(bench, "whole")


# DeepSpeed without ZeRO, and with a schedule of its own.
OWN = {"zero_optimization": {"stage": 0}, "scheduler": {"type": "WarmupLR", "params": {
    "warmup_min_lr": 0, "warmup_max_lr": 0.002, "warmup_num_steps": 2, "warmup_type": "linear"}}}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["none", 2, 3, "own"])
def test_another_number_of_ranks_resumes(trained, stage):
    """Sums come in another order, so the outcome is as close as it is between stages, not the same to the bit: all
    stages are compared with plain DDP."""
    name, calm = f"reshared-{stage}", {**LONG, "model__hidden_dropout_prob": 0.0}
    way = {"deepspeed": OWN} if stage == "own" else {"zero__stage": stage}
    whole = "calm-own" if stage == "own" else "calm-none"
    if not trained.output(whole).exists():
        trained.train(whole, **calm, **(way if stage == "own" else {}))
    known = files.read_json(trained.output(whole) / "report.json")
    job = trained.job(name, **calm, **way)
    process = start(trained, job)
    wait_for(process, lambda: step_of(trained, name) >= 10)
    process.terminate()
    end(process)
    done = trained.quick("train", job, "--ranks", "1")
    assert done.returncode == 0 and "resuming from step" in done.stdout, done.stdout
    assert ("resharding it for 1 rank" in done.stdout) == (stage in (2, 3))
    assert np.abs(np.array(trained.losses(name)) - np.array(trained.losses(whole))).max() < 2e-4
    assert not (trained.output(name) / "checkpoints" / checkpoint.RESHARDED).exists()
    report = files.read_json(trained.output(name) / "report.json")
    tokens = [made["tokens_per_second"] / made["samples_per_second"] for made in (report, known)]
    assert tokens[0] == pytest.approx(tokens[1], rel=0.05), "tokens of a sample"
    if stage == "own":
        rates = [line["learning_rate"] for line in files.read_lines(trained.output(name) / "metrics.jsonl")
                 if "learning_rate" in line]
        assert len(rates) > 10 and set(rates) == {0.002}


def test_a_job_that_fails_the_same_way_again_and_again_is_given_up(bench):
    job = bench.job(train__learning_rate=1e30, train__gradient_clipping=0)
    runs = [bench.quick("train", job) for _ in range(3)]
    assert [run.returncode for run in runs] == [1, 1, 3]
    for run in runs:
        assert "the loss became NaN at step 2" in run.stdout and "lower train.learning_rate" in run.stdout
        assert "Traceback" not in run.stdout
    assert "giving up. Fix the cause and start it again; it resumes from its newest checkpoint" in runs[2].stdout
    status = files.read_json(bench.output() / "status.json")
    assert status["state"] == "failed" and "3 times" in status["given_up"]


class Engine:
    """Stands for a training: writes two files."""

    def __init__(self, text):
        self.text = text

    def save(self, root, tag):
        for name in ("weights", "state"):
            (root / tag / name).write_text(self.text + name)


@pytest.fixture
def alone(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield tmp_path / "checkpoints"
    dist.destroy_process_group()


FACTS = RunIdentity(fingerprint="x", data="y")


def contents(text, step):
    return checkpoint.Contents(Engine(text), FACTS, TrainingState(step=step))


def save(root, step, text="", keep=2):
    checkpoint.save(root, contents(text, step), keep)


def test_the_newest_intact_checkpoint_is_used_and_damaged_ones_are_put_aside(alone):
    for step in (1, 2, 3):
        save(alone, step)
    assert checkpoint.tags(alone) == ["step-2", "step-3"]
    weights = alone / "step-3" / "weights"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")  # the same size
    said = []
    found = newest(alone, FACTS, said.append)
    assert found.tag == "step-2" and found.record.state == TrainingState(step=2)
    assert "step-3 is damaged (weights)" in said[0]
    assert (alone / "unused-step-3").is_dir()
    (alone / "step-2" / "state").unlink()
    assert newest(alone, FACTS, said.append) is None


def test_what_cannot_be_read_is_damaged_and_a_copy_is_no_checkpoint(alone, monkeypatch):
    for step in (1, 2):
        save(alone, step)
    shutil.copytree(alone / "step-2", alone / "step-2.bak")
    shutil.copytree(alone / "step-1", alone / "step-0-copy")

    def unreadable(path, alive):
        if path.parent.name == "step-2":
            raise OSError(number, os.strerror(number), str(path))
        return digest(path, alive)

    digest, said, number = checkpoint._digest, [], errno.EACCES
    monkeypatch.setattr(checkpoint, "_digest", unreadable)
    with pytest.raises(PermissionError):  # somebody can fix that
        newest(alone, FACTS, said.append)
    number = errno.EIO
    assert newest(alone, FACTS, said.append).tag == "step-1"
    assert "step-2 is damaged" in said[0] and "Input/output error" in said[0]
    save(alone, 3, keep=1)
    assert {path.name for path in alone.glob("step-*")} == {"step-3", "step-2.bak", "step-0-copy"}


def test_reading_and_syncing_large_files_are_signs_of_life(alone, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 2**20)
    calls = []
    checkpoint.save(alone, contents("x" * 5 * 2**20, 1), 1, lambda: calls.append(1))
    assert len(calls) > 2 * (2 + 5)  # two files, each read in blocks and synced in chunks
    assert newest(alone, FACTS, print).tag == "step-1"


def test_a_checkpoint_of_another_run_is_not_used(alone):
    save(alone, 1)
    said = []
    assert newest(alone, RunIdentity(fingerprint="x", data="z"), said.append) is None
    assert "not the same: data" in said[0]


@pytest.mark.parametrize("step", [3, 2])  # a new one, and once more after a resume that was stopped at once
def test_a_cut_at_any_point_of_a_save_leaves_an_intact_checkpoint(alone, monkeypatch, step):
    """Power fails at the n-th call that changes the disk, for every n; what is renamed or written after it never
    happens."""
    class PowerCutError(BaseException):
        pass

    calls = {"left": 0}

    def failing(function):
        def call(*args, **options):
            calls["left"] -= 1
            if calls["left"] < 0:
                raise PowerCutError
            return function(*args, **options)
        return call

    points = 0
    while True:
        shutil.rmtree(alone, ignore_errors=True)
        save(alone, 1, "old")
        save(alone, 2, "old")
        calls["left"] = points
        with monkeypatch.context() as patch:
            for module, name in ((os, "replace"), (os, "fsync"), (shutil, "rmtree"), (Path, "mkdir"),
                                 (Path, "write_text"), (files, "_exchange")):
                patch.setattr(module, name, failing(getattr(module, name)))
            try:
                save(alone, step, "new")
                survived = True
            except PowerCutError:
                survived = False
        found = newest(alone, FACTS, lambda _: None)
        assert found is not None and found.tag in ("step-2", "step-3"), points
        text = (alone / found.tag / "weights").read_text()
        assert text in (("newweights",) if found.tag == "step-3" else ("newweights", "oldweights") if step == 2
                        else ("oldweights",))
        if survived:
            break
        points += 1
    assert points > 10 and found.tag == f"step-{step}" and text == "newweights"


def test_too_little_room_is_seen_before_anything_is_written(alone, monkeypatch):
    from debzero.base.errors import UserError

    save(alone, 1, "x" * 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1500}))
    with pytest.raises(UserError, match="no room for a checkpoint"):
        checkpoint.check_room(alone)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10_000}))
    checkpoint.check_room(alone)


def test_a_run_that_has_saved_has_room_to_go_on(tmp_path, monkeypatch):
    job = Job.model_validate({"model": {"type": "gpt2", "vocab_size": 100, "n_embd": 32, "n_layer": 1},
                              "output": str(tmp_path), "data": {"dataset": "x.csv"}})
    need = bytes_needed(job)
    assert need == 52 * (12 * 32**2 + 100 * 32)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": need - 1000, "total": need}))
    (tmp_path / "checkpoints" / "step-1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-1" / "weights").write_bytes(b"x" * 1000)
    files.write_json(tmp_path / "status.json", {"state": "failed", "fingerprint": "this"})
    assert _output(job, "job.yml", "this") == []
    for another in ("that", None):  # the run before moves to archive/, where it takes as much
        assert [problem.key for problem in _output(job, "job.yml", another)] == ["output"]
    archived = tmp_path / "archive" / "2026-01-01"
    archived.mkdir(parents=True)
    for name in ("checkpoints", "status.json"):
        (tmp_path / name).rename(archived / name)
    files.write_json(tmp_path / "status.json", {"state": "failed", "fingerprint": "that"})
    assert _output(job, "job.yml", "this") == [], "it is taken back"


def test_a_late_checkpoint_is_asked_for_once():
    """The ranks hear of it a step later, when it must not be late again."""
    resolved = SimpleNamespace(job=SimpleNamespace(checkpoint=Checkpoint(minutes=1)))
    saver = Saver(SimpleNamespace(context=SimpleNamespace(resolved=resolved), state=TrainingState(step=7)), None)
    saver.saved_at -= 61
    assert [saver.due(), saver.due()] == [True, False]


def test_metrics_cut_short_by_a_crash_are_repaired(tmp_path):
    from debzero.run.folder import RunFolder

    output = RunFolder(str(tmp_path))
    output.metrics_file.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "lo')
    output.cut_metrics(2)
    assert output.metrics_file.read_text() == '{"step": 1}\n{"step": 2}\n'
