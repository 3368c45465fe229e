"""The micro-batch that fits: predicted at a job's first start, halved when memory ran out, remembered for the next
start. And DeepSpeed's buffers for speed, where there is room for them beside it.

The global batch stays the same, because gradient accumulation makes up for a smaller micro-batch. So the order of the
data and the schedule stay, too, and a run resumes from its checkpoint with another micro-batch as if nothing had
changed.
"""
from __future__ import annotations

from pathlib import Path
from typing import Optional

from debzero.base.environment import environment
from debzero.plan.largest_micro import ROOM, at_first_start
from debzero.resolve.micro_batch import is_fixed, with_micro
from debzero.resolve.resolve import ResolvedJob
from debzero.run.folder import RunFolder


def with_launchers_choice(resolved: ResolvedJob) -> ResolvedJob:
    """A rank's job, with the micro-batch and the buffers that its launcher has decided. Other launchers decide nothing:
    the buffers then are the small ones."""
    micro = environment().micro_batch
    resolved = resolved.favouring("speed" if environment().favour == "speed" else "memory")
    return resolved if micro is None or is_fixed(resolved) else with_micro(resolved, micro)


def at_start(resolved: ResolvedJob, file: Path, folder: RunFolder) -> ResolvedJob:
    """The launcher's job, with the micro-batch that an earlier start of this run arrived at. Without one, `auto`
    becomes the largest micro-batch that `debzero plan` expects to fit on the GPUs. DeepSpeed's buffers are for speed
    where the job wants that and the plan has room for them; a decision in the environment counts more."""
    automatic, status = resolved.job.train.micro_batch == "auto", folder.written_status()
    before = status.micro_batch if status and not is_fixed(resolved) else None
    if before:
        if before < resolved.batch.micro and not automatic:
            print(f"memory ran out before: continuing with a micro-batch of at most {before}", flush=True)
        resolved = with_micro(resolved, before if automatic else min(before, resolved.batch.micro))
    started, buffers = at_first_start(resolved, file)
    if buffers not in ("", ROOM):
        print(f"DeepSpeed's buffers are {buffers}", flush=True)
    return with_launchers_choice(started) if environment().favour else started


def after_failure(resolved: ResolvedJob, folder: RunFolder) -> Optional[ResolvedJob]:
    """The job to continue with when the ranks ran out of memory in a step: with small buffers if DeepSpeed's were for
    speed, else with at most half the micro-batch. None after other failures, and where there is nothing to halve."""
    note = folder.error_note()
    if note and note.memory and resolved.favours_speed and resolved.hosts == 1 and not environment().measured:
        # Of several hosts all start again, and only the micro-batch would be remembered until then.
        print("out of memory: continuing with small buffers (zero.favour: memory)", flush=True)
        folder.error_file.unlink(missing_ok=True)
        folder.update(state="preparing")
        return resolved.favouring("memory")
    if note is None or not note.memory or is_fixed(resolved) or resolved.batch.micro == 1:
        return None
    smaller = with_micro(resolved, resolved.batch.micro // 2)
    print(f"out of memory with a micro-batch of {resolved.batch.micro}: continuing with {smaller.batch}", flush=True)
    folder.error_file.unlink(missing_ok=True)
    folder.update(state="preparing", micro_batch=smaller.batch.micro)
    return smaller
