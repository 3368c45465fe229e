"""The floating-point precision that a job trains in on a host, and what is wrong with the one that it asks for."""
from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Optional

from debzero.base.errors import Problem
from debzero.base.files import read_json
from debzero.job.schema import Job
from debzero.resolve.absorb import Origins
from debzero.resolve.host import HostGpus

# Model types of the T5 family, whose activations pass fp16's largest number (66246 > 65504 in t5-base).
OVERFLOWING = {"t5", "mt5", "umt5", "longt5"}
# Published names: t5-base, t5-v1_1-xl, flan-t5-small, mt5-base, byt5-small, long-t5-local-base, codet5-base.
T5_NAME = re.compile(r"(?:^|[-_.])(?:t5|mt5|umt5|byt5|longt5|codet5)(?:$|[-_.])", re.IGNORECASE)


def choose(job: Job, host: HostGpus, off: Collection[str] = ()) -> tuple[str, str]:
    """The precision, and why it was chosen where the job leaves it open. `off`: those that the JSON switches off."""
    wanted = job.train.precision
    if wanted != "auto":
        return wanted, ""
    if not host.gpus:
        return "fp32", "there is no GPU"
    if host.bf16 and "bf16" not in off:
        return "bf16", "this GPU has it, and it cannot overflow"
    reason = "the DeepSpeed JSON switches bf16 off" if host.bf16 else "this GPU has no bf16"
    if overflows_in_fp16(job):
        return "fp32", f"T5's activations overflow in fp16, and {reason}"
    if "fp16" in off:
        return "fp32", f"the DeepSpeed JSON switches fp16 off, and {reason}"
    return "fp16", reason


def problems(job: Job, host: HostGpus, origins: Origins) -> list[Problem]:
    """Why the job cannot have the precision that it, or its DeepSpeed JSON, asks for."""
    wanted, key = job.train.precision, "train.precision"
    in_json = key in origins.keys

    def problem(reason: str, fix: str) -> list[Problem]:
        theirs = f'set {origins.key(key)}: "auto", and in the job {fix[len("set "):]}'
        return origins.placed([Problem(origins.file, key, reason, theirs if in_json else fix)])

    if wanted == "fp16" and overflows_in_fp16(job):
        return problem("T5's activations overflow in fp16",
                       "set precision: bf16 if the GPU has it, else fp32; auto chooses")
    if wanted in ("fp16", "bf16") and not host.gpus:
        return problem(f"{wanted} needs a GPU and this host has none that torch can use",
                       "set precision: auto (fp32 on a CPU); on a GPU host see `nvidia-smi`")
    if wanted == "bf16" and not host.bf16:
        return problem("this GPU has no bf16 (it came with Ampere, compute capability 8.0)", "set precision: auto")
    return []


def overflows_in_fp16(job: Job) -> bool:
    """Whether the model is of the T5 family. Its own type decides, where that can be known without the network.

    A hub id whose config.json is not in the cache yet is judged by its name, which may be wrong for a model that is
    named after T5 without being one: it trains in fp32 until it is in the cache, and then as its type says.
    """
    kind = model_type(job.model, job.revision)
    if kind is not None:
        return kind in OVERFLOWING
    name = str(job.model)
    return not Path(name).is_absolute() and bool(T5_NAME.search(name.rpartition("/")[2]))


def model_type(model: object, revision: str = "main") -> Optional[str]:
    """The `model_type` of a job's `model:`, from the job, the local folder or the hub's cache; None where none says."""
    if isinstance(model, dict):
        return str(model["type"])
    name = str(model)
    file = str(Path(name) / "config.json") if Path(name).is_absolute() else cached_config(name, revision)
    kind = read_json(Path(file)).get("model_type") if file else None
    return kind if isinstance(kind, str) else None


def cached_config(name: str, revision: str) -> Optional[str]:
    """The path of a hub model's config.json in the local cache; None where it is not there."""
    from huggingface_hub import constants, try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision, cache_dir=constants.HF_HUB_CACHE)
    except (OSError, ValueError):  # a name that no repository can have
        return None
    return found if isinstance(found, str) else None
