"""The folder that DeepSpeed swaps parameters and optimizer states to: checked for safety, and measured once.

DeepSpeed removes its swap folder recursively when it starts, and opens its files with O_DIRECT, which tmpfs refuses. So
it gets a folder of the run's own below `zero.nvme_path`, and only on a disk that is mounted.
"""
from __future__ import annotations

import hashlib
import itertools
import os
import shlex
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Optional

import psutil

from debzero.base import privileges
from debzero.base.errors import PassingProblem, Problem, UserError
from debzero.base.files import read_json, unreadable, write_json

MARK = ".debzero"  # the file that shows that debzero created the folder
SAMPLE = 2**26     # bytes of one measurement
DEPTHS, BLOCKS, THREADS = (8, 32), (2**20, 2**23), (1, 4)


def folder(nvme_path: str, output: str) -> Path:
    """Where the run that writes to `output` swaps: never shared by two runs, nor is a folder above it by two users."""
    path = os.path.abspath(output)
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return Path(nvme_path) / f"debzero-swap-{os.path.basename(path)[:64]}-{digest}"


def problems(nvme_path: str, output: str, file: str) -> list[Problem]:
    """Why DeepSpeed must not be given this path, each with the fix."""
    def problem(reason: str, fix: str) -> list[Problem]:
        return [Problem(file, "zero.nvme_path", reason, fix)]

    path = Path(nvme_path)
    missing = _unmounted(path)
    if missing:  # yet: at boot a disk may come later
        return [PassingProblem(file, "zero.nvme_path", f"{missing} is a mount point in /etc/fstab with nothing mounted "
                               "on it: the system's own disk would be filled", f"mount {shlex.quote(str(missing))}")]
    if not os.path.isdir(path):
        reason = unreadable(path) or ("is not a folder" if os.path.exists(path) else "does not exist")
        return problem(f"{path} {reason}",
                       "create it on an NVMe disk, owned by the user that runs the job")
    if not os.access(path, os.W_OK | os.X_OK):
        return problem(f"the user {os.getuid()} may not write to {path}", "give it to the user that runs the job")
    kind = file_system(path)
    if kind in ("tmpfs", "ramfs", "overlay", "nfs", "nfs4"):
        return problem(f"{path} is on {kind}, where O_DIRECT fails or nothing is gained",
                       "choose a folder on a local ext4 or xfs")
    own = folder(nvme_path, output)
    if os.path.lexists(own) and (own.is_symlink() or os.lstat(own).st_uid != os.geteuid()):
        return problem(f"{own} is not a folder of the user that runs the job", "remove it")
    try:
        privileges.require_own(own)
    except UserError as error:
        return problem(error.reason, error.fix)
    if reason := unreadable(own):
        return problem(f"{own} {reason}", "give it to the user that runs the job, or choose another output")
    if own.is_dir() and any(own.iterdir()) and not (own / MARK).is_file():
        return problem(f"{own} is not empty and was not created by debzero",
                       "move its contents away: DeepSpeed would delete them")
    return []


def file_system(path: Path) -> str:
    """The type of the file system that holds `path`."""
    mounts = [m for m in psutil.disk_partitions(all=True) if path.resolve().is_relative_to(m.mountpoint)]
    return max(mounts, key=lambda m: len(m.mountpoint)).fstype if mounts else ""


def _unmounted(path: Path, fstab: Path = Path("/etc/fstab")) -> Optional[str]:
    """The mount point of fstab that `path` should be on, where nothing is mounted there."""
    lines = fstab.read_text().splitlines() if fstab.is_file() else []
    points = [fields[1] for fields in map(str.split, lines) if len(fields) > 2 and not fields[0].startswith("#")]
    return next((p for p in points if p not in ("/", "none", "swap") and path.is_relative_to(p)
                 and not os.path.ismount(p)), None)


def prepare(nvme_path: str, output: str) -> Path:
    """Create the run's own folder; an earlier run may have left files in it. One rank does this. Raises a UserError
    where root was to swap into another user's folder."""
    own = folder(nvme_path, output)
    with suppress(FileExistsError):  # problems() has looked at it
        own.mkdir(mode=0o700)
    privileges.require_own(own)
    (own / MARK).touch()
    return own


def aio_settings(own: Path, kept: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """DeepSpeed's `aio` section that reads and writes fastest in `own`; measured for some seconds, then kept in the
    file `kept`."""
    known = read_json(kept, own=True)
    found = known.get("aio")
    if known.get("folder") == str(own) and isinstance(found, dict):
        return found
    speeds = {}
    for block, depth, threads in itertools.product(BLOCKS, DEPTHS, THREADS):
        settings = {"block_size": block, "queue_depth": depth, "thread_count": threads, "single_submit": False,
                    "overlap_events": True}
        speeds[block, depth, threads] = (_measure(own / "measure", settings), settings)
    best, aio = max(speeds.values(), key=lambda found: found[0])
    say(f"NVMe: {best / 1e9:.2f} GB/s with aio {aio}")
    write_json(kept, {"folder": str(own), "bytes_per_second": best, "aio": aio})
    return aio


def _measure(file: Path, settings: dict[str, Any]) -> float:
    """Bytes per second, writing and reading `file` once."""
    import torch
    from deepspeed.ops.op_builder import AsyncIOBuilder

    handle = AsyncIOBuilder().load(verbose=False).aio_handle(
        settings["block_size"], settings["queue_depth"], settings["single_submit"], settings["overlap_events"],
        settings["thread_count"])
    buffer = handle.new_cpu_locked_tensor(SAMPLE, torch.empty(0, dtype=torch.uint8))
    started = time.perf_counter()
    try:
        handle.sync_pwrite(buffer, str(file))
        handle.sync_pread(buffer, str(file))
    finally:
        handle.free_cpu_locked_tensor(buffer)
        file.unlink(missing_ok=True)
    return 2 * SAMPLE / (time.perf_counter() - started)
