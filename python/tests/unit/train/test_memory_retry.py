"""The micro-batch is chosen, and given up for a smaller one, without the global batch noticing."""
from __future__ import annotations

import json
import os
import resource
import textwrap
import time
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
from running import end, ranks_of, start, step_of, wait_for
from support import JOB
from torch.distributed.elastic import multiprocessing
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from debzero.base import files
from debzero.job import schema
from debzero.plan import largest_micro
from debzero.plan.hardware import Hardware
from debzero.plan.largest_micro import predicted
from debzero.plan.model_shapes import Shapes
from debzero.plan.planner import Planner
from debzero.resolve.host import HostGpus
from debzero.resolve.micro_batch import with_micro
from debzero.resolve.resolve import resolve
from debzero.resolve.sharding import Sharding
from debzero.run.folder import RunFolder
from debzero.train import launch, memory_retry

GPUS = HostGpus(gpus=2, bf16=True)
LARGE = Hardware(gpus=2, gpu_memory=40 * 2**30, ram=256 * 2**30, nvme=0, bf16=True, source="")


def resolved(path, total=64, micro="auto", config=None, **train):
    values = {**JOB, "train": {**JOB["train"], "global_batch": total, "micro_batch": micro, **train},
              "output": str(path)}
    return resolve(schema.Job.model_validate(values), GPUS, None, "job.yml", config)


@pytest.fixture
def output(tmp_path):
    made = RunFolder(str(tmp_path / "out"))
    made.folder.mkdir()
    return made


def failed(output, **error):
    files.write_json(output.error_file, {"rank": 0, "error": "out of memory", **error})


def test_memory_that_ran_out_halves_the_micro_batch_until_one_sample_is_left(output, capsys):
    own, seen = resolved(output.folder, micro=32), []
    while own is not None:
        seen.append((own.batch.micro, own.batch.accumulation, own.batch.total))
        failed(output, memory=True)
        own = memory_retry.after_failure(own, output)
        assert own is None or files.read_json(output.status_file)["micro_batch"] == own.batch.micro
    assert seen == [(32, 1, 64), (16, 2, 64), (8, 4, 64), (4, 8, 64), (2, 16, 64), (1, 32, 64)]
    assert "micro-batch of 32: continuing with global batch 64 = micro-batch 16 x 2" in capsys.readouterr().out


def test_half_of_an_odd_micro_batch_still_divides_the_share(output):
    failed(output, memory=True)
    assert memory_retry.after_failure(resolved(output.folder, total=42, micro=21), output).batch.micro == 7


@pytest.mark.parametrize("case", ["another failure", "a measured run", "the JSON decides"])
def test_what_is_not_halved(output, monkeypatch, case):
    failed(output, memory=case != "another failure")
    if case == "a measured run":
        monkeypatch.setenv("DEBZERO_MEASURED", "1")
    config = {"train_micro_batch_size_per_gpu": 8,
              "zero_optimization": {"stage": 2}} if case == "the JSON decides" else None
    own = resolved(output.folder, config=config)
    small = own.favouring("memory") if case == "the JSON decides" else own
    assert memory_retry.after_failure(small, output) is None


def test_the_first_start_takes_the_largest_that_the_plan_expects_to_fit(output, monkeypatch):
    own = resolved(output.folder, total=256)
    assert own.batch.micro == 32
    assert predicted(own, output.folder / "job.yml", LARGE) == 128
    fixed = with_micro(own, own.batch.micro).job
    enough = Planner(fixed, None, LARGE, "job.yml", Shapes(fixed, "job.yml", None)).row(Sharding(0))
    room = enough.memory.device_bytes - enough.memory.parts_bytes["activations"] // 2
    small = Hardware(**{**LARGE.__dict__, "gpu_memory": int(room)})
    assert predicted(own, output.folder / "job.yml", small) < own.batch.micro
    monkeypatch.setattr(largest_micro, "find_hardware", lambda gpus, sizes: (LARGE, []))
    assert memory_retry.at_start(own, output.folder / "job.yml", output).batch.micro == 128
    assert not files.read_json(output.status_file), "only what memory taught is remembered"


def test_a_later_start_remembers_and_a_job_that_asks_for_less_gets_less(output):
    output.update(state="failed", micro_batch=64)
    for micro, expected in (("auto", 64), (128, 64), (16, 16)):
        asked = resolved(output.folder, total=256, micro=micro)
        assert memory_retry.at_start(asked, output.folder / "job.yml", output).batch.micro == expected
    assert memory_retry.at_start(resolved(output.folder, total=48, micro="auto"), output.folder / "job.yml",
                                 output).batch.micro == 24


def test_a_disk_for_offloading_counts_with_its_size(output, monkeypatch):
    """find_hardware() knows of no disk where there are GPUs; 0 says that nothing fits, not that nothing can be
    told."""
    own = resolved(output.folder, total=256)
    monkeypatch.setattr(largest_micro, "find_hardware",
                        lambda gpus, sizes: (replace(LARGE, nvme=int(sizes["nvme"] or 0)), []))
    for path, lacks in ((output.folder / "not" / "yet" / "there", False), (None, True)):
        zero = own.job.zero.model_copy(update={"stage": 3, "offload_optimizer": "nvme",
                                               "nvme_path": path and str(path)})
        asked = replace(own, stage=3, job=own.job.model_copy(update={"zero": zero}))
        found = predicted(asked, output.folder / "job.yml")
        assert found == (0 if lacks else 128)


@pytest.mark.parametrize("config", [{"train_batch_size": 64}, {"gradient_accumulation_steps": 4}])
def test_the_largest_micro_batch_is_one_that_the_json_allows(output, config):
    given = {**config, "zero_optimization": {"stage": 2}}
    own = resolved(output.folder, total=64, config=given)
    room = Planner(own.job, given, LARGE, "job.yml", Shapes(own.job, "job.yml", None))
    largest = room.row(Sharding(2)).largest_micro_batch
    assert largest == (own.batch.micro if "gradient_accumulation_steps" in config else 32)


def test_a_rank_does_as_its_launcher_says(output, monkeypatch):
    own = resolved(output.folder, micro=32)
    monkeypatch.setenv("DEBZERO_MICRO_BATCH", "4")
    monkeypatch.setenv("DEBZERO_FAVOUR", "speed")
    assert memory_retry.with_launchers_choice(own).batch.micro == 4
    assert memory_retry.with_launchers_choice(own).job.zero.favour == "speed"
    monkeypatch.delenv("DEBZERO_MICRO_BATCH")
    monkeypatch.delenv("DEBZERO_FAVOUR")
    assert memory_retry.with_launchers_choice(own).batch.micro == 32
    assert memory_retry.with_launchers_choice(own).job.zero.favour == "memory", "nobody has looked for room"


def sharded(path, **changes):
    """A job that DeepSpeed trains in stage 3 on two GPUs, whatever torch is installed."""
    own = resolved(path, micro=32)
    zero = own.job.zero.model_copy(update={"stage": 3, "engine": "deepspeed", **changes})
    return replace(own, stage=3, job=own.job.model_copy(update={"zero": zero}))


def test_buffers_are_for_speed_where_a_tenth_of_the_memory_stays_free(output, monkeypatch, capsys):
    own, file = sharded(output.folder), output.folder / "job.yml"
    planner = Planner(own.job.model_copy(update={"ranks": 2}), None, LARGE, "job.yml", Shapes(own.job, "job.yml", None))
    fast, small = (planner.memory(own.favouring(favour)).device_bytes for favour in ("speed", "memory"))
    assert fast > small
    for memory, favour in ((fast * 10 / 9, "speed"), (fast * 1.1, "memory")):
        hardware = replace(LARGE, gpu_memory=int(memory) + 1, ram=1)  # which does not depend on the buffers
        monkeypatch.setattr(largest_micro, "find_hardware", lambda gpus, sizes, hardware=hardware: (hardware, []))
        started = memory_retry.at_start(own, file, output)
        assert (started.job.zero.favour, started.batch.micro) == (favour, 32)
        said = capsys.readouterr().out
        assert ("less than 10% of the GPU's memory" in said) == (favour == "memory") and said.count("\n") <= 1
        assert memory_retry.at_start(sharded(output.folder, favour="memory"), file, output).job.zero.favour == "memory"


def test_an_automatic_micro_batch_comes_before_the_buffers(output):
    own, file = sharded(output.folder), output.folder / "job.yml"
    own = replace(own, job=own.job.model_copy(update={"train": own.job.train.model_copy(
        update={"micro_batch": "auto", "global_batch": 512})}))
    favours = {}
    for share in range(100, 220, 4):
        hardware = replace(LARGE, gpu_memory=int(share / 100 * 1.5 * 2**30))
        started, _ = largest_micro.at_first_start(own, file, hardware)
        small, _ = largest_micro.at_first_start(own.favouring("memory"), file, hardware)
        assert started.batch.micro == small.batch.micro, "no micro-batch is given up for larger buffers"
        favours[share] = started.job.zero.favour
    assert favours[100] == "memory" and favours[216] == "speed"


def test_what_the_environment_says_of_the_buffers_counts_more(output, monkeypatch):
    monkeypatch.setattr(largest_micro, "find_hardware", lambda gpus, sizes: (LARGE, []))
    for job, favour in (("memory", "speed"), ("speed", "memory")):
        monkeypatch.setenv("DEBZERO_FAVOUR", favour)
        started = memory_retry.at_start(sharded(output.folder, favour=job), output.folder / "job.yml", output)
        assert started.job.zero.favour == favour


def test_a_model_that_cannot_be_traced_gets_small_buffers(output, monkeypatch, capsys):
    monkeypatch.setattr(largest_micro, "Planner", lambda *_: SimpleNamespace(row=lambda _: 1 / 0))
    monkeypatch.setattr(largest_micro, "find_hardware", lambda gpus, sizes: (LARGE, []))
    assert memory_retry.at_start(sharded(output.folder), output.folder / "job.yml", output).job.zero.favour == "memory"
    assert "cannot be predicted" in capsys.readouterr().out


def test_memory_that_ran_out_takes_the_large_buffers_first(output, capsys):
    failed(output, memory=True)
    first = memory_retry.after_failure(sharded(output.folder), output)
    assert (first.job.zero.favour, first.batch.micro) == ("memory", 32) and not output.error_file.exists()
    failed(output, memory=True)
    assert memory_retry.after_failure(first, output).batch.micro == 16
    failed(output, memory=True)
    together = memory_retry.after_failure(replace(sharded(output.folder), hosts=2), output)
    assert together.batch.micro == 16, "the other hosts would not remember the buffers"


def test_the_user_is_told_where_nothing_can_be_predicted(output, monkeypatch, capsys):
    monkeypatch.setattr(largest_micro, "Planner", lambda *_: SimpleNamespace(row=lambda _: 1 / 0))
    assert predicted(resolved(output.folder), output.folder / "job.yml", LARGE) is None
    assert "cannot be predicted: ZeroDivisionError" in capsys.readouterr().err


def test_the_launcher_killing_those_that_wait_for_a_rank_without_memory_is_not_the_cause(output, monkeypatch):
    """A rank that hangs in NCCL when its partner is gone outlives the request to end; seen on a GPU."""
    failures = {0: ProcessFailure(0, 1, -9, "<N/A>"), 1: ProcessFailure(1, 2, 1, "<N/A>")}
    started = SimpleNamespace(wait=lambda period: SimpleNamespace(failures=failures), close=lambda: None)
    monkeypatch.setattr(multiprocessing, "start_processes", lambda *_, **logs: started)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    own = resolved(output.folder, micro=32)
    failed(output, memory=True)
    assert launch._launch(own, output.folder / "job.yml", None) == 1
    assert memory_retry.after_failure(own, output).batch.micro == 16
    failed(output, memory=False)
    assert launch._launch(own, output.folder / "job.yml", None) == 1
    assert output.error_note().error.startswith("rank 0 was killed by SIGKILL")


def test_a_rank_in_a_step_that_cannot_end_does_not_wait_for_it(bench):
    done = bench.run(module=("-c", textwrap.dedent("""
        import os, signal, time
        from debzero.train.agreement import Stop, block_signals

        block_signals()
        stop = Stop()
        stop.listen(at_once=lambda: None, failed=lambda: True)
        stop.orderly.set()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    """)))
    assert done.returncode == 1, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage"), [
    (2, 2), *(pytest.param(1, stage, marks=pytest.mark.long) for stage in ("none", 3))])
def test_a_running_job_whose_memory_shrinks_ends_with_the_same_global_batch(bench, ranks, stage):
    """While it trains, a rank's limit is lowered to little more than it holds between steps: a tensor of 32 MiB finds
    no room."""
    path = bench.job(ranks=ranks, zero__stage=stage, train__micro_batch=16, train__epochs=2,
                     checkpoint={"minutes": 1000, "steps": 5 if ranks > 1 else None}, data__max_length=512,
                     data__padding="max_length")
    process = start(bench, path)
    wait_for(process, lambda: step_of(bench, "job") >= 6)
    rank = psutil.Process(ranks_of(process)[-1].pid)
    limit = min(rank.memory_info().data for _ in range(100) if not time.sleep(0.01)) + 40 * 2**20
    rank.rlimit(resource.RLIMIT_DATA, (limit, limit))
    said = end(process)
    assert process.returncode == 0, said
    assert ("out of memory with a micro-batch of 16: continuing with global batch 32 = micro-batch 8 x "
            f"{4 // ranks} accumulation steps x {'1 rank' if ranks == 1 else '2 ranks'}") in said
    assert "resuming from step" in said
    trained = [int(line.split()[1].partition("/")[0]) for line in said.splitlines() if line.startswith("step ")
               and "epoch" in line]
    assert set(trained) == set(range(1, 27))
    assert len(trained) == 26 or ranks > 1, "a rank that is alone saves what it has before it gives up"
    report = json.loads((bench.output() / "report.json").read_text())
    assert report["micro_batch"] == 8 and report["global_batch"] == 32 and report["steps"] == 26
    lines = [json.loads(line) for line in (bench.output() / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 27))


def test_a_cap_that_only_smaller_batches_keep_to_is_kept_to(bench):
    """What `debzero bench --cap` sets: here each rank may take 300 MiB beside its code and libraries, and 64 samples of
    512 tokens take more."""
    path = bench.job(train__micro_batch=64, train__global_batch=128, train__max_steps=1, data__max_length=512,
                     data__padding="max_length")
    done = bench.quick("train", path, DEBZERO_MEMORY_CAP=str(300 * 2**20))
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((bench.output() / "report.json").read_text())
    assert report["micro_batch"] < 64 and report["global_batch"] == 128
