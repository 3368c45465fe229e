"""Invented results in the shape that `debzero bench` writes, to render without training. None of their figures was
measured. Standard library only: a stand-in for a bench runs outside the trainer's environment, too."""
from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from debzero.bench.results import BenchResults, Prediction, Row, Settings
from debzero.job.batch import Batch
from debzero.measure.records import HostFacts, MeasuredRun, Segment
from debzero.resolve.sharding import Sharding

GB = 10**9
MEMORY = {"baseline": 7.9, "zero1": 4.96, "zero2": 4.6, "zero3": 3.1, "zero1-cpu": 3.3, "zero2-cpu": 2.7}
SPEED = {"baseline": 849.0, "zero1": 700.0, "zero2": 431.0, "zero3": 169.0, "zero1-cpu": 80.0, "zero2-cpu": 40.0}
PARTS = {"parameters": .3, "gradients": .2, "optimizer": .35, "activations": .1, "buffers": .03, "temporary": .02}


SHARDINGS = [Sharding(0), Sharding(1), Sharding(2), Sharding(3), Sharding(1, "cpu"), Sharding(2, "cpu"),
             Sharding(3, "cpu", "cpu"), Sharding(3, "nvme", "nvme")]
HOST = HostFacts(name="gpu1", device="An invented GPU 40GB", gpus=2, gpu_memory_bytes=40 * 2**30, cuda="12.0",
                 driver="525.1", processor="An invented processor (32 cores)", cores=32, memory_bytes=256 * 2**30,
                 system="Debian GNU/Linux 11 (bullseye)", kernel="5.10.0-30-amd64")
JOB = {"model": "bert-large-uncased",
       "data": {"dataset": "glue/mrpc", "text": ["sentence1", "sentence2"], "max_length": 128},
       "train": {"epochs": 3, "global_batch": 64, "learning_rate": 3e-5}, "zero": {"stage": 2},
       "output": "/var/lib/debzero/a-folder-with-a-name-that-is-much-longer-than-a-phone-is-wide/bert-large"}


def run(memory: float = 1.0, speed: float = 100.0, ranks: int = 2, **changes: Any) -> MeasuredRun:
    """One run of 20 steps of 64 samples, in two segments. `memory` in GB a rank, `speed` in samples/s."""
    segment = Segment(steps=10, samples=640, seconds=640 / speed)
    return replace(MeasuredRun(segments=(segment, segment), memory_bytes=(int(memory * GB),) * ranks,
                               device_bytes=(int((memory + 1) * GB),), host_bytes=6 * GB, wall_seconds=40.0), **changes)


def failed(kind: Literal["memory", "refused", "time", "failed"], reason: str) -> MeasuredRun:
    return MeasuredRun(kind, reason, wall_seconds=40.0)


def row(sharding: Sharding, faster: float = 1.0) -> Row:
    name = sharding.name
    if name == "zero3-cpu":
        runs = [failed("memory", "rank 1 failed: out of memory: CUDA out of memory. Tried to allocate 1.25 GiB (GPU 0; "
                                 "39.39 GiB total capacity) -> set a smaller train.micro_batch (the global batch "
                                 "stays), a higher zero.stage")]
    elif name == "zero3-nvme":
        runs = [failed("refused", "zero.nvme_path /nvme/a-rather-long-path-without-any-place-to-break-it/debzero/swap/"
                                  "folder does not exist -> create it on an NVMe disk, owned by the user that runs the "
                                  "job")]
    else:
        runs = [run(MEMORY[name], SPEED[name] * faster * by) for by in (1.0, .97, 1.04)]
    total = int(MEMORY.get(name, 2) * GB * 1.04)
    predicted = Prediction(total, {part: int(share * total) for part, share in PARTS.items()})
    return Row(**sharding.as_dict(), runs=tuple(runs), predicted=predicted)


def sample(name: str = "gpu1", faster: float = 1.0, **changes: Any) -> BenchResults:
    bench = BenchResults(
        identity="0123456789abcdef", made="2030-01-02T03:04:05+00:00",
        command="debzero bench bert-large.yml --ranks 2 --steps 20", job_file="bert-large.yml", job=JOB,
        model="bert-large-uncased", precision="fp16", batch=Batch(total=64, micro=8, accumulation=4, ranks=2),
        settings=Settings(ranks=2, share_gpu=False, steps=20, warmup=10, cap_gib=None), speed_comparable=True,
        left_out=None, host=replace(HOST, name=name),
        versions={"debzero": "1", "python": "3.10.1", "torch": "2.0.9", "transformers": "4.0.9", "deepspeed": "0.1.9"},
        definitions={"step": "one optimizer step of the whole global batch", "speed": "samples a second, measured"},
        configurations=tuple(row(sharding, faster) for sharding in SHARDINGS))
    return replace(bench, **changes)
