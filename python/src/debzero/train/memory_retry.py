"""The micro-batch that fits: predicted at a job's first start, halved when memory ran out, remembered for the next
start.

The global batch stays what it is, for accumulation makes up for a smaller micro-batch; so the data's order and the
schedule stay, too, and a run goes on from its checkpoint with another micro-batch as if nothing had been. """
from __future__ import annotations

from pathlib import Path
from typing import Optional

from debzero.base.environment import environment
from debzero.base.files import read_json
from debzero.plan.largest_micro import predicted
from debzero.resolve.micro_batch import is_fixed, with_micro
from debzero.resolve.resolve import ResolvedJob
from debzero.run.folder import Output


def as_told(resolved: ResolvedJob) -> ResolvedJob:
    """A rank's plan, with the micro-batch that its launcher has decided."""
    decided = environment().micro_batch
    return resolved if decided is None or is_fixed(resolved) else with_micro(resolved, decided)


def at_start(resolved: ResolvedJob, file: Path, output: Output) -> ResolvedJob:
    """The launcher's plan: with the micro-batch that an earlier start of this run came to, else (for `auto`, where there are GPUs) with
    the largest that `debzero plan` expects to fit."""
    if is_fixed(resolved):
        return resolved
    automatic = resolved.job.train.micro_batch == "auto"
    before = read_json(output.status_file).get("micro_batch")
    if before:
        if before < resolved.batch.micro and not automatic:
            print(f"memory ran out before: going on with a micro-batch of at most {before}", flush=True)
        return with_micro(resolved, before if automatic else min(before, resolved.batch.micro))
    found = predicted(resolved, file) if automatic and resolved.host.gpus else None
    return with_micro(resolved, found) if found else resolved


def after_failure(resolved: ResolvedJob, output: Output) -> Optional[ResolvedJob]:
    """The plan to go on with when the ranks ran out of memory in a step: at most half the micro-batch. None for other failures, and
    where there is nothing to halve."""
    if not read_json(output.first_error).get("memory") or is_fixed(resolved) or resolved.batch.micro == 1:
        return None
    smaller = with_micro(resolved, resolved.batch.micro // 2)
    print(f"out of memory with a micro-batch of {resolved.batch.micro}: going on with {smaller.batch}", flush=True)
    output.first_error.unlink(missing_ok=True)
    output.update(state="preparing", micro_batch=smaller.batch.micro)
    return smaller
