"""What a plan expects to fit, for a job that is about to start: the largest micro-batch, and beside it DeepSpeed's
buffers for speed."""
from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Callable, Optional, TypeVar

from debzero.base.errors import InputError
from debzero.base.files import nearest
from debzero.base.text import printable
from debzero.plan.divided import plan_divided
from debzero.plan.hardware import Hardware, find_hardware
from debzero.plan.model_shapes import Shapes
from debzero.plan.planner import NO_ROOM, SMALL, Planner
from debzero.resolve.layout import busy
from debzero.resolve.micro_batch import is_fixed, with_micro
from debzero.resolve.resolve import ResolvedJob

ENDLESS = 2**60  # bytes
# Which buffers DeepSpeed has, for people; NO_ROOM is the third answer.
ROOM = "for speed"
UNKNOWN = f"{SMALL} the memory that those of favour: speed would take cannot be predicted"

T = TypeVar("T")


def predicted(resolved: ResolvedJob, file: Path, hardware: Optional[Hardware] = None,
              gpus_alone: bool = False, for_speed: bool = False) -> Optional[int]:
    """The largest micro-batch, in samples, that fits on this host (or `hardware`) by the prediction of `debzero plan`;
    0 if none does, None if the model cannot be traced; for a pipeline the largest that keeps its stages busy.
    `gpus_alone`: for a job that will start anyway, whose needs of RAM and NVMe do not depend on its micro-batch;
    `for_speed`: the largest beside which DeepSpeed's buffers for speed are used."""
    if resolved.layout.each > 1:
        def divided(shapes: Shapes, hardware: Hardware) -> int:
            largest = plan_divided(shapes, resolved, hardware).largest_micro_batch
            return largest and busy(resolved.layout, resolved.batch.total, largest)

        return _asked(resolved, file, hardware, gpus_alone, divided)

    def whole(shapes: Shapes, hardware: Hardware) -> int:
        planner = Planner(shapes.job, resolved.deepspeed, hardware, str(file), shapes)
        if for_speed:
            return planner.largest_for_speed(resolved.sharding)
        return planner.row(resolved.sharding).largest_micro_batch

    return _asked(resolved, file, hardware, gpus_alone, whole)


def at_first_start(resolved: ResolvedJob, file: Path, hardware: Optional[Hardware] = None) -> tuple[ResolvedJob, str]:
    """The job as its training starts on this host (or `hardware`): with the largest micro-batch that fits where it is
    `auto`, and DeepSpeed's buffers for speed only where there is room for them; and which buffers those are and why,
    empty where the job asks for none."""
    automatic = resolved.job.train.micro_batch == "auto" and not is_fixed(resolved)
    if not resolved.host.gpus or not (automatic or resolved.favours_speed):
        return resolved, ""
    if not resolved.favours_speed:
        largest = predicted(resolved, file, hardware, gpus_alone=True)
        return (with_micro(resolved, largest) if largest else resolved), ""
    row = _asked(resolved, file, hardware, True, lambda shapes, hardware: Planner(
        shapes.job, resolved.deepspeed, hardware, str(file), shapes).row(resolved.sharding))
    if row is None:
        return resolved.favouring("memory"), UNKNOWN
    if automatic and row.largest_micro_batch:
        resolved = with_micro(resolved, row.largest_micro_batch)
    return (resolved, ROOM) if row.favour == "speed" else (resolved.favouring("memory"), NO_ROOM)


def _asked(resolved: ResolvedJob, file: Path, hardware: Optional[Hardware], gpus_alone: bool,
           question: Callable[[Shapes, Hardware], T]) -> Optional[T]:
    """What a plan answers to the question; None if the model cannot be traced."""
    zero, ranks = resolved.job.zero, resolved.layout.ranks
    job = resolved.job.model_copy(update={"ranks": ranks})
    if hardware is None:
        disk = Path(zero.nvme_path) if zero.nvme_path else None
        space = str(shutil.disk_usage(nearest(disk)).total) if disk else None
        hardware = find_hardware(resolved.host.gpus * resolved.hosts, {"nvme": space})[0]
    if gpus_alone:
        hardware = replace(hardware, ram=ENDLESS, nvme=ENDLESS)
    try:
        return question(Shapes(job, str(file), None), hardware)
    except InputError:  # for example, the hub cannot be reached; the training will say so
        return None
    except Exception as error:  # a model that cannot be traced can still be trained
        reason = printable(f"{type(error).__name__}: {error}")
        print(f"the memory cannot be predicted: {reason}", file=sys.stderr, flush=True)
        return None
