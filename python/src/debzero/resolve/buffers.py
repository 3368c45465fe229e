"""DeepSpeed's buffers, as far as a job sizes them itself: `zero.bucket`, `overlap`, `live` and `prefetch`, which
overrule what `zero.favour` gives."""
from __future__ import annotations

from typing import Any, Optional

from debzero.base.errors import Problem
from debzero.deepspeed_json import releases
from debzero.deepspeed_json.view import ZERO
from debzero.job.schema import Job, Zero
from debzero.resolve.absorb import given
from debzero.resolve.sharding import BUFFERS

# DeepSpeed's own keys for each of the job's.
OPTIONS = {"bucket": ("reduce_bucket_size", "allgather_bucket_size"), "overlap": ("overlap_comm",),
           "live": ("stage3_max_live_parameters", "stage3_max_reuse_distance"),
           "prefetch": ("stage3_prefetch_bucket_size",)}


def sizes(zero: Zero) -> dict[str, Any]:
    """What the section sets itself, by DeepSpeed's own keys."""
    return {option: value for key, options in OPTIONS.items() if (value := getattr(zero, key)) is not None
            for option in options}


def overlap_fault(job: Job, stage: int) -> str:
    """What the installed release does wrong when it overlaps communication in this job; empty where nothing is known.
    The small buckets of `favour: memory` overlap in every release, as they always have here."""
    here, zero = releases.here(), job.zero
    if stage < 3 and job.train.compile == "auto" and releases.overlap_breaks_compiled_layers(here):
        return f"gives NaN with compiled layers in DeepSpeed {here.deepspeed}"
    large = zero.favour == "speed" or zero.bucket is not None or zero.overlap is not None
    if large and releases.overlap_loses_gradients(here, stage):
        return f"may lose gradients at stage {stage} in DeepSpeed {here.deepspeed} with torch {here.torch}"
    return ""


def problems(job: Job, config: Optional[dict[str, Any]], gpus: int, file: str) -> list[Problem]:
    """Why the job cannot size the buffers that it sizes. `config`: its DeepSpeed JSON; `gpus`: of this host."""
    refused = {key: _refusal(job, key, config, gpus) for key in BUFFERS if getattr(job.zero, key) is not None}
    return [Problem(file, f"zero.{key}", *why) for key, why in refused.items() if why]


def _refusal(job: Job, key: str, config: Optional[dict[str, Any]], gpus: int) -> Optional[tuple[str, str]]:
    """The reason against a key that is set, with its fix."""
    zero, first = job.zero, BUFFERS[key]
    stage = 0 if zero.stage == "none" else int(zero.stage)
    options = [option for option in OPTIONS[key] if given(config, ZERO, option) is not None]
    if zero.engine == "native":
        return "the native engine has no such buffers", "remove it, or remove zero.engine so that DeepSpeed trains"
    if job.parallel.each > 1:
        return "debzero itself trains divided models, without such buffers", "remove it, or remove parallel"
    if not stage:
        return "stage none has no such buffers", f"remove it, or set zero.stage: {max(first, 2)}"
    if stage < first:
        return f"only stage {first} gathers parameters, not stage {stage}", f"remove it, or set zero.stage: {first}"
    if options:
        return f"the DeepSpeed JSON sets {ZERO}.{options[0]} as well", "remove one of the two"
    if key == "overlap" and zero.overlap and gpus and (fault := overlap_fault(job, stage)):
        return f"overlapped communication {fault}", "remove it, or install another release"
    return None
