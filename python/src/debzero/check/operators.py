"""Whether this host has DeepSpeed's operators that a job's offload needs."""
from __future__ import annotations

from debzero.base.errors import Problem
from debzero.base.operators import RUNTIME, unavailable
from debzero.resolve.resolve import ResolvedJob

# By the optimizer's type in small letters; DeepSpeed moves others as they are.
CPU_OPERATORS = {"adam": "cpu_adam", "adamw": "cpu_adam", "adagrad": "cpu_adagrad", "lion": "cpu_lion"}


def operator_problems(resolved: ResolvedJob, file: str) -> list[Problem]:
    """Why offload would fail when DeepSpeed starts: with a traceback, after the data was prepared."""
    zero, on_gpus = resolved.job.zero, resolved.host.gpus > 0
    if not resolved.uses_deepspeed:
        return []
    optimizer = (resolved.deepspeed or {}).get("optimizer", {})
    needed: dict[str, str] = {}
    if zero.offload_optimizer != "none" and optimizer.get("params", {}).get("torch_adam") is not True:
        name = CPU_OPERATORS.get(str(optimizer.get("type", "AdamW")).lower())
        needed.update({name: "zero.offload_optimizer"} if name else {})
    for part in ("offload_param", "offload_optimizer"):
        if getattr(zero, part) == "nvme":
            needed["async_io"] = f"zero.{part}"
    found = [Problem(file, key, why, f"{RUNTIME}: its wheel of DeepSpeed holds {operator}; or offload nothing")
             for operator, key in needed.items() if (why := unavailable(operator, on_gpus))]
    return resolved.origins.placed(found)
