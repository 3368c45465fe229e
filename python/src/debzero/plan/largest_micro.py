"""The largest micro-batch that a plan expects to fit."""
from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Optional

from debzero.base.errors import InputError
from debzero.base.files import nearest
from debzero.plan.hardware import Hardware, find_hardware
from debzero.plan.model_shapes import Shapes
from debzero.plan.planner import Planner
from debzero.resolve.resolve import ResolvedJob


def predicted(resolved: ResolvedJob, file: Path, hardware: Optional[Hardware] = None) -> Optional[int]:
    """The largest micro-batch that `debzero plan` expects to fit on this host (or `hardware`), 0 where none does; None where it cannot
    tell."""
    zero, ranks = resolved.job.zero, resolved.batch.ranks
    job = resolved.job.model_copy(update={"ranks": ranks})
    if hardware is None:
        disk = Path(zero.nvme_path) if zero.nvme_path else None
        room = str(shutil.disk_usage(nearest(disk)).total) if disk else None
        hardware = find_hardware(resolved.host.gpus, {"nvme": room})[0]
    try:
        own = Planner(job, resolved.deepspeed, hardware, str(file), Shapes(job, str(file), None))
        return own.row(resolved.sharding).largest_micro
    except InputError:  # told by whoever needs it: the hub is out of reach, say
        return None
    except Exception as error:  # a model of an unknown kind is no reason not to train it
        print(f"the micro-batch is not predicted: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return None
