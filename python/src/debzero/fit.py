"""The micro-batch that fits: predicted at a job's first start, halved when memory ran out, remembered for the next start.

The global batch stays what it is, for accumulation makes up for a smaller micro-batch; so the data's order and the schedule stay, too,
and a run goes on from its checkpoint with another micro-batch as if nothing had been.
"""
from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any, Optional

from debzero.base.environment import environment
from debzero.base.errors import InputError
from debzero.base.files import nearest, read_json
from debzero.resolve.micro_batch import is_fixed, with_micro
from debzero.resolve.resolve import Plan
from debzero.run.folder import Output


def as_told(plan: Plan) -> Plan:
    """A rank's plan, with the micro-batch that its launcher has decided."""
    decided = environment().micro_batch
    return plan if decided is None or is_fixed(plan) else with_micro(plan, decided)


def at_start(plan: Plan, file: Path, output: Output) -> Plan:
    """The launcher's plan: with the micro-batch that an earlier start of this run came to, else (for `auto`, where there are GPUs) with
    the largest that `debzero plan` expects to fit."""
    if is_fixed(plan):
        return plan
    automatic = plan.job.train.micro_batch == "auto"
    before = read_json(output.status_file).get("micro_batch")
    if before:
        if before < plan.batch.micro and not automatic:
            print(f"memory ran out before: going on with a micro-batch of at most {before}", flush=True)
        return with_micro(plan, before if automatic else min(before, plan.batch.micro))
    found = predicted(plan, file) if automatic and plan.host.gpus else None
    return with_micro(plan, found) if found else plan


def predicted(plan: Plan, file: Path, hardware: Optional[Any] = None) -> Optional[int]:
    """The largest micro-batch that `debzero plan` expects to fit on this host (or `hardware`), 0 where none does; None where it cannot
    tell."""
    from debzero import planner, shapes

    zero, ranks = plan.job.zero, plan.batch.ranks
    job = plan.job.model_copy(update={"ranks": ranks})
    if hardware is None:
        disk = Path(zero.nvme_path) if zero.nvme_path else None
        room = str(shutil.disk_usage(nearest(disk)).total) if disk else None
        hardware = planner.hardware(plan.host.gpus, {"nvme": room})[0]
    try:
        own = planner.Planner(job, plan.deepspeed, hardware, str(file), shapes.Shapes(job, str(file), None))
        return own.row(planner.choice_of(plan)).largest_micro
    except InputError:  # told by whoever needs it: the hub is out of reach, say
        return None
    except Exception as error:  # a model of an unknown kind is no reason not to train it
        print(f"the micro-batch is not predicted: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return None


def after_failure(plan: Plan, output: Output) -> Optional[Plan]:
    """The plan to go on with when the ranks ran out of memory in a step: at most half the micro-batch. None for other failures, and
    where there is nothing to halve."""
    if not read_json(output.first_error).get("memory") or is_fixed(plan) or plan.batch.micro == 1:
        return None
    smaller = with_micro(plan, plan.batch.micro // 2)
    print(f"out of memory with a micro-batch of {plan.batch.micro}: going on with {smaller.batch}", flush=True)
    output.first_error.unlink(missing_ok=True)
    output.update(state="preparing", micro_batch=smaller.batch.micro)
    return smaller
