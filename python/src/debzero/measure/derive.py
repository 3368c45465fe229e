"""The job file that measures a job in one sharding."""
from __future__ import annotations

import math
from typing import Any

from debzero.resolve.resolve import ResolvedJob
from debzero.resolve.sharding import Sharding

NEVER = 10**6  # minutes until a checkpoint: a run that is measured writes none


def derive(resolved: ResolvedJob, sharding: Sharding, output: str, warmup: int, steps: int) -> dict[str, Any]:
    """The job file (a mapping) that runs `warmup` + `steps` optimizer steps of a job in another sharding.

    Micro-batch and precision are those of `resolved`, so they are the same in every row. Of the user's own DeepSpeed
    JSON, `resolved` holds the batch, the rates and the precision; the rest would not let the stages differ and is left
    out. All batches are padded to the same length, so the first ones show the most that the job can take, and only one
    shape is compiled.
    """
    job: dict[str, Any] = resolved.job.model_dump(mode="json", exclude={"deepspeed"})
    job["output"], job["ranks"] = output, resolved.batch.ranks
    job["data"]["padding"] = "max_length"
    job["train"].update(
        micro_batch=resolved.batch.micro, precision=resolved.precision, epochs=warmup + steps, max_steps=warmup + steps,
        # A progress line waits for the device: as few as the limits of warm-up and measurement allow.
        log_every=math.gcd(warmup, steps), evaluate_every=None, select="last", patience=None)
    job["zero"].update(sharding.as_dict())
    job["checkpoint"].update(minutes=NEVER, steps=None)
    return {key: {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value
            for key, value in job.items()}
