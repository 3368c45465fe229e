"""The job file that measures a job in one sharding."""
from __future__ import annotations

import math
from typing import Any

from debzero.resolve.resolve import ResolvedJob
from debzero.resolve.sharding import Sharding

NEVER = 10**6  # minutes until a checkpoint: a run that is measured writes none


def derive(resolved: ResolvedJob, sharding: Sharding, output: str, warmup: int, steps: int) -> dict[str, Any]:
    """The job file (a mapping) that runs `warmup` + `steps` optimizer steps of `plan`'s job in another configuration.

    The micro-batch and the precision are the plan's, so they are the same in every row. Of the user's own DeepSpeed JSON
    the plan holds the batch, the rates and the precision; the rest of it would not let the stages differ and is left out. All batches
    are padded to the same length: the first ones show the most that the job can take, and none but them is compiled or recorded for.
    """
    made: dict[str, Any] = resolved.job.model_dump(mode="json")
    made["deepspeed"], made["output"], made["ranks"] = None, output, resolved.batch.ranks
    made["data"]["padding"] = "max_length"
    made["train"].update(
        micro_batch=resolved.batch.micro, precision=resolved.precision, epochs=warmup + steps, max_steps=warmup + steps,
        # A progress line waits for the device: as few as the limits of warm-up and measurement allow.
        log_every=math.gcd(warmup, steps), evaluate_every=None, select="last", patience=None)
    made["zero"].update(sharding.as_dict())
    made["checkpoint"].update(minutes=NEVER, steps=None)
    made.pop("deepspeed")
    return {key: {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value
            for key, value in made.items()}
