"""debzero's own engine for ZeRO: what it can carry out, and the sizes that `debzero plan` counts, too."""
from __future__ import annotations

from typing import Any, Optional

from debzero.base.errors import Problem
from debzero.deepspeed_json import releases
from debzero.job.schema import Job

BUCKET = 2**25  # elements that are sent at once: 128 MiB in fp32, which NVLink takes in half a millisecond
IN_FLIGHT = 2   # buckets whose gradients wait for the network


def pays() -> bool:
    """Whether the installed torch can record its steps on a GPU. Only then was it measured to be faster than DeepSpeed
    (docs/benchmarks)."""
    return releases.parsed(releases.here().torch) >= (2, 4)


def problems(job: Job, config: Optional[dict[str, Any]], file: str) -> list[Problem]:
    """What a job has that the engine it names cannot carry out. `config`: its DeepSpeed JSON."""
    zero = job.zero
    without_stage = "remove it, or set zero.stage: 2" if job.parallel.each == 1 else "remove it"
    if zero.engine == "deepspeed" and zero.stage == "none" and config is None:
        return [Problem(file, "zero.engine", "with stage none DeepSpeed has nothing to shard: plain DDP would train",
                        without_stage)]
    if zero.engine != "native":
        return []
    fix = "remove it, or remove zero.engine so that DeepSpeed trains"
    found = []
    if zero.stage == "none":
        found.append(Problem(file, "zero.engine", "native carries out stages 1 to 3, not none", without_stage))
    for key in ("offload_optimizer", "offload_param"):
        if getattr(zero, key) != "none":
            found.append(Problem(file, f"zero.{key}", "the native engine offloads nothing", fix))
    if config is not None:
        found.append(Problem(file, "deepspeed", "the native engine reads no DeepSpeed JSON", fix))
    return found
