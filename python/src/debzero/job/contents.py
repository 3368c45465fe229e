"""What is in a job's local data and model files, as digests: runs on other contents are other runs.

The content decides. Size, times and inode only save reading it again: the digests are kept with them in the run's
folder. The time of the last change of the inode (ctime) is among them, because no program can set it: whoever changes
a file and puts its size and modification time back is noticed all the same.
"""
from __future__ import annotations

import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from debzero.base import own_files
from debzero.base.files import sha256, write_json
from debzero.job.local_files import files_of, files_read
from debzero.job.schema import Job

KEPT = "data/digests.json"  # in the output folder
LIMIT = 2**24  # bytes of KEPT
SETTLED_SECONDS = 2  # a file that has changed just now may change again without another time

Stamp = tuple[int, int, int, int]  # bytes, modification and change in nanoseconds, inode


def digests(job: Job) -> list[tuple[str, str]]:
    """The split or the name, and the SHA-256, of each file of a local data set and a local model, in order."""
    return [named for part in by_part(job).values() for named in part.items()]


def by_part(job: Job) -> dict[str, dict[str, str]]:
    """The SHA-256 of each file: of a local data set by its split below "data", for what its files are called does not
    matter; of a local model by its name below "model", but for notes. A file that this user may not read counts as
    such: `debzero check` refuses it."""
    parts: dict[str, dict[str, Path]] = {}
    if os.path.isabs(job.data.dataset):
        parts["data"] = files_read(job.data)
    if isinstance(job.model, str) and os.path.isabs(job.model):
        parts["model"] = {file.name: file for file in files_of(job.model)
                          if not file.name.startswith(".") and file.suffix != ".md"}
    parts = {part: {name: file for name, file in named.items() if os.path.isfile(file)}
             for part, named in parts.items()}
    files = [file for named in parts.values() for file in named.values()]
    if not files:
        return {}
    keeper = Path(job.output) / KEPT
    kept = _read(keeper)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda file: _digest(file, kept), files))
    settled = {str(file): [*stamp, digest] for file, (stamp, digest) in zip(files, found) if _settled(stamp)}
    if settled and settled != kept:
        with suppress(OSError):  # then it is read again
            _keep(keeper, settled)
    known = {file: digest for file, (_, digest) in zip(files, found)}
    return {part: {name: known[file] for name, file in named.items()} for part, named in parts.items()}


def _digest(file: Path, kept: dict[str, list[object]]) -> tuple[Stamp, str]:
    info = file.stat()
    stamp = (info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)
    *known, digest = kept.get(str(file), [None])
    if known == [*stamp]:
        return stamp, str(digest)
    try:
        return stamp, (_remembered(str(file), stamp) if _settled(stamp) else _sha256(str(file)))
    except PermissionError:
        return stamp, "may not be read"


def _settled(stamp: Stamp) -> bool:
    return time.time() - stamp[2] / 1e9 > SETTLED_SECONDS


@lru_cache(maxsize=1024)
def _remembered(file: str, stamp: Stamp) -> str:
    """A process asks more than once, and the first time there may be no folder to keep the answer in."""
    return _sha256(file)


def _sha256(file: str) -> str:
    with open(file, "rb") as content:
        return sha256(content)


def _keep(keeper: Path, files: dict[str, list[object]]) -> None:
    """Only in this user's own folder: root, who checks another's job, leaves nothing there."""
    if os.stat(keeper.parent.parent).st_uid == os.geteuid():
        keeper.parent.mkdir(exist_ok=True)
        if os.lstat(keeper.parent).st_uid == os.geteuid():
            write_json(keeper, {"files": files, "sha256": _checksum(files)})


def _read(keeper: Path) -> dict[str, list[object]]:
    """What was kept; nothing where it is damaged, for a wrong digest would end a run that could continue."""
    with suppress(OSError, ValueError, RecursionError, TypeError, KeyError, own_files.ForeignFileError):
        values = json.loads(own_files.read(keeper, LIMIT))
        if values["sha256"] == _checksum(values["files"]):
            return dict(values["files"])
    return {}


def _checksum(files: object) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
