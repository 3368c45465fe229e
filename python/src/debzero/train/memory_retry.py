"""The micro-batch that fits: predicted at a job's first start, halved when memory ran out, remembered for the next
start.

The global batch stays the same, because gradient accumulation makes up for a smaller micro-batch. So the order of the
data and the schedule stay, too, and a run resumes from its checkpoint with another micro-batch as if nothing had
changed.
"""
from __future__ import annotations

from pathlib import Path
from typing import Optional

from debzero.base.environment import environment
from debzero.plan.largest_micro import predicted
from debzero.resolve.micro_batch import is_fixed, with_micro
from debzero.resolve.resolve import ResolvedJob
from debzero.run.folder import RunFolder


def with_launchers_micro(resolved: ResolvedJob) -> ResolvedJob:
    """A rank's job, with the micro-batch that its launcher has decided."""
    decided = environment().micro_batch
    return resolved if decided is None or is_fixed(resolved) else with_micro(resolved, decided)


def at_start(resolved: ResolvedJob, file: Path, folder: RunFolder) -> ResolvedJob:
    """The launcher's job, with the micro-batch that an earlier start of this run arrived at. Without one, `auto`
    becomes the largest micro-batch that `debzero plan` expects to fit on the GPUs."""
    if is_fixed(resolved):
        return resolved
    automatic, status = resolved.job.train.micro_batch == "auto", folder.written_status()
    before = status.micro_batch if status else None
    if before:
        if before < resolved.batch.micro and not automatic:
            print(f"memory ran out before: continuing with a micro-batch of at most {before}", flush=True)
        return with_micro(resolved, before if automatic else min(before, resolved.batch.micro))
    largest = predicted(resolved, file, gpus_alone=True) if automatic and resolved.host.gpus else None
    return with_micro(resolved, largest) if largest else resolved


def after_failure(resolved: ResolvedJob, folder: RunFolder) -> Optional[ResolvedJob]:
    """The job to continue with when the ranks ran out of memory in a step: with at most half the micro-batch. None
    after other failures, and where there is nothing to halve."""
    note = folder.error_note()
    if note is None or not note.memory or is_fixed(resolved) or resolved.batch.micro == 1:
        return None
    smaller = with_micro(resolved, resolved.batch.micro // 2)
    print(f"out of memory with a micro-batch of {resolved.batch.micro}: continuing with {smaller.batch}", flush=True)
    folder.error_file.unlink(missing_ok=True)
    folder.update(state="preparing", micro_batch=smaller.batch.micro)
    return smaller
