"""The largest micro-batch that a plan expects to fit."""
from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Optional

from debzero.base.errors import InputError
from debzero.base.files import nearest
from debzero.base.text import printable
from debzero.plan.divided import plan_divided
from debzero.plan.hardware import Hardware, find_hardware
from debzero.plan.model_shapes import Shapes
from debzero.plan.planner import Planner
from debzero.resolve.layout import busy
from debzero.resolve.resolve import ResolvedJob

ENDLESS = 2**60  # bytes


def predicted(resolved: ResolvedJob, file: Path, hardware: Optional[Hardware] = None,
              gpus_alone: bool = False) -> Optional[int]:
    """The largest micro-batch, in samples, that fits on this host (or `hardware`) by the prediction of `debzero plan`;
    0 if none does, None if the model cannot be traced; for a pipeline the largest that keeps its stages busy.
    `gpus_alone`: for a job that will start anyway, whose needs of RAM and NVMe do not depend on its micro-batch."""
    zero, ranks = resolved.job.zero, resolved.layout.ranks
    job = resolved.job.model_copy(update={"ranks": ranks})
    if hardware is None:
        disk = Path(zero.nvme_path) if zero.nvme_path else None
        space = str(shutil.disk_usage(nearest(disk)).total) if disk else None
        hardware = find_hardware(resolved.host.gpus * resolved.hosts, {"nvme": space})[0]
    if gpus_alone:
        hardware = replace(hardware, ram=ENDLESS, nvme=ENDLESS)
    try:
        shapes = Shapes(job, str(file), None)
        if resolved.layout.each > 1:
            largest = plan_divided(shapes, resolved, hardware).largest_micro_batch
            return largest and busy(resolved.layout, resolved.batch.total, largest)
        own = Planner(job, resolved.deepspeed, hardware, str(file), shapes)
        return own.row(resolved.sharding).largest_micro_batch
    except InputError:  # for example, the hub cannot be reached; the training will say so
        return None
    except Exception as error:  # a model that cannot be traced can still be trained
        reason = printable(f"{type(error).__name__}: {error}")
        print(f"the micro-batch cannot be predicted: {reason}", file=sys.stderr, flush=True)
        return None
