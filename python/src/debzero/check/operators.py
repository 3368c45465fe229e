"""Whether this host has DeepSpeed's operators that a job's offload needs."""
from __future__ import annotations

from debzero.base.errors import Problem
from debzero.base.operators import RUNTIME, unavailable
from debzero.resolve.absorb import given
from debzero.resolve.resolve import ResolvedJob

# By the optimizer's type in small letters; DeepSpeed moves others as they are.
CPU_OPERATORS = {"adam": "cpu_adam", "adamw": "cpu_adam", "adagrad": "cpu_adagrad", "lion": "cpu_lion"}
# Of these its accelerator for processors has no operators, with offload or without (accelerator/cpu_accelerator.py).
ON_GPUS_ALONE = ("lamb", "lion", "onebitadam", "onebitlamb", "zerooneadam")


def operator_problems(resolved: ResolvedJob, file: str) -> list[Problem]:
    """Why offload would fail when DeepSpeed starts: with a traceback, after the data was prepared."""
    zero = resolved.job.zero
    if not resolved.uses_deepspeed:
        return []
    kind = str(given(resolved.deepspeed, "optimizer", "type") or "AdamW").lower()
    if resolved.host.gpus == 0 and (kind in ON_GPUS_ALONE or (kind, zero.offload_optimizer) == ("adagrad", "cpu")):
        place = resolved.origins
        return [Problem(place.json_file or file, f"{place.prefix}optimizer.type", f"DeepSpeed has {kind} for GPUs "
                        "alone, and this host has none that torch can use",
                        "use AdamW here, or start the job on a GPU host")]
    needed: dict[str, list[str]] = {"zero.offload_optimizer": [], "zero.offload_param": []}
    if zero.offload_optimizer != "none" and given(resolved.deepspeed, "optimizer", "params", "torch_adam") is not True:
        needed["zero.offload_optimizer"] += [CPU_OPERATORS[kind]] if kind in CPU_OPERATORS else []
    for key in needed:
        needed[key] += ["async_io"] if getattr(zero, key.split(".")[1]) == "nvme" else []
    found = []
    for key, operators in needed.items():
        lacking = {name: why for name in operators if (why := unavailable(name, resolved.host.gpus > 0))}
        if lacking:
            fix = f"{RUNTIME}: its wheel of DeepSpeed holds {' and '.join(lacking)}; or do not offload"
            found.append(Problem(file, key, "; ".join(lacking.values()), fix))
    return resolved.origins.placed(found)
