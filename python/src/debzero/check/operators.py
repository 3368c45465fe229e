"""Whether this host has DeepSpeed's operators that a job's optimizer and offload need."""
from __future__ import annotations

from debzero.base.errors import Problem
from debzero.base.operators import DEFAULT, RUNTIME, unavailable
from debzero.resolve.absorb import given
from debzero.resolve.resolve import ResolvedJob

# By the optimizer's type in small letters; DeepSpeed moves others as they are.
CPU_OPERATORS = {"adam": "cpu_adam", "adamw": "cpu_adam", "adagrad": "cpu_adagrad", "lion": "cpu_lion"}
GPU_OPERATORS = {"adam": DEFAULT, "adamw": DEFAULT, "lamb": "fused_lamb", "lion": "fused_lion"}
# Of these its accelerator for processors has no operators, with offload or without (accelerator/cpu_accelerator.py).
ON_GPUS_ALONE = ("lamb", "lion", "onebitadam", "onebitlamb", "zerooneadam")


def operator_problems(resolved: ResolvedJob, file: str) -> list[Problem]:
    """Why DeepSpeed would fail when it starts: with a traceback, after the data was prepared."""
    zero = resolved.job.zero
    if not resolved.uses_deepspeed:
        return []
    kind = str(given(resolved.deepspeed, "optimizer", "type") or "AdamW").lower()
    if resolved.host.gpus == 0 and (kind in ON_GPUS_ALONE or (kind, zero.offload_optimizer) == ("adagrad", "cpu")):
        place = resolved.origins
        return [Problem(place.json_file or file, f"{place.prefix}optimizer.type", f"DeepSpeed has {kind} for GPUs "
                        "alone, and this host has none that torch can use",
                        "use AdamW here, or start the job on a GPU host")]
    torchs = given(resolved.deepspeed, "optimizer", "params", "torch_adam") is True
    needed: dict[str, list[str]] = {"zero.offload_optimizer": [], "zero.offload_param": []}
    if zero.offload_optimizer != "none" and not torchs:
        needed["zero.offload_optimizer"] += [CPU_OPERATORS[kind]] if kind in CPU_OPERATORS else []
    for key in needed:
        needed[key] += ["async_io"] if getattr(zero, key.split(".")[1]) == "nvme" else []
    instead = dict.fromkeys(needed, "do not offload")
    if zero.offload_optimizer == "none" and not torchs and resolved.host.gpus and kind in GPU_OPERATORS:
        key = f"{resolved.origins.prefix}optimizer.type" if given(resolved.deepspeed, "optimizer") else "zero.stage"
        needed[key], instead[key] = [GPU_OPERATORS[kind]], "`apt install g++ ninja-build`, to compile it"
    found = []
    for key, operators in needed.items():
        lacking = {name: why for name in operators if (why := unavailable(name, resolved.host.gpus > 0))}
        if lacking:
            fix = f"{RUNTIME}: its wheel of DeepSpeed holds {' and '.join(lacking)}; or {instead[key]}"
            in_json = key.endswith("optimizer.type") and resolved.origins.json_file
            found.append(Problem(in_json or file, key, "; ".join(lacking.values()), fix))
    return resolved.origins.placed(found)
