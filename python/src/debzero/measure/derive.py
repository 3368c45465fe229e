"""The job file that measures a job in one sharding."""
from __future__ import annotations

import math

from debzero.job.schema import Job
from debzero.resolve.resolve import ResolvedJob
from debzero.resolve.sharding import Sharding

NEVER = 10**6  # minutes until a checkpoint: a run that is measured writes none


def derive(resolved: ResolvedJob, sharding: Sharding, output: str, warmup: int, steps: int) -> Job:
    """The job that runs `warmup` + `steps` optimizer steps of a job in another sharding.

    Micro-batch and precision are those of `resolved`, so they are the same in every row. Of the user's own DeepSpeed
    JSON, `resolved` holds the batch, the rates and the precision; the rest would not let the stages differ and is left
    out. All batches are padded to the same length, so the first ones show the most that the job can take, and only one
    shape is compiled.
    """
    own, count = resolved.job, warmup + steps
    train = own.train.model_copy(update={
        "micro_batch": resolved.batch.micro, "precision": resolved.precision, "epochs": count, "max_steps": count,
        # A progress line waits for the device: as few as the limits of warm-up and measurement allow.
        "log_every": math.gcd(warmup, steps), "evaluate_every": None, "select": "last", "patience": None})
    return own.model_copy(update={
        "output": output, "ranks": resolved.layout.ranks, "deepspeed": None, "train": train,
        "data": own.data.model_copy(update={"padding": "max_length"}), "zero": sharding.in_section(own.zero),
        "checkpoint": own.checkpoint.model_copy(update={"minutes": NEVER, "steps": None})})
