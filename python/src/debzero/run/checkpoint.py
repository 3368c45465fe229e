"""Checkpoints: whole or not there, each with the checksums of its files, the newest few kept.

A checkpoint is the folder step-<optimizer steps done>. It is written under another name, synced and renamed. It holds
no pickle (tensor_file), and is used only if all in it is this user's own and exactly what was written: debzero.json
lists every file with its size and SHA-256, and debzero.json.sha256 has the checksum of debzero.json. In any doubt the
checkpoint before it is used.
"""
from __future__ import annotations

import errno
import hashlib
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Callable, NamedTuple, Optional, Protocol

from pydantic import ValidationError

from debzero.base import own_files
from debzero.base.errors import UserError
from debzero.base.failures import full_disk_named
from debzero.base.files import Heartbeat, remove, replace, replace_folder, sha256, sync_tree, write_json, write_text
from debzero.base.text import printable
from debzero.run.records import CheckpointRecord, RunIdentity, TrainingState

FACTS = "debzero.json"
SUM = "debzero.json.sha256"  # as sha256sum writes it
FACTS_LIMIT = 2**26  # bytes; it names each of a checkpoint's files
# Copies for one start. They are hidden: whatever a crash leaves of them goes at the next.
TEMPORARY = RESHARDED, GATHERED = ".resharded", ".gathered"
# A bad block, a broken file system; and what becomes of a file that another replaces while it is read.
DAMAGES = (errno.EIO, errno.EUCLEAN, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG)
ROOM = 1.1  # a new checkpoint is about as large as the last one


class UnusableError(Exception):
    """Why a checkpoint is not used, as the rest of a sentence about it."""


class Savable(Protocol):
    """What a checkpoint needs of an engine."""

    def save(self, root: Path, tag: str) -> None:
        """Write this rank's part into the folder root/tag, which is there."""


class Contents(NamedTuple):
    """What a checkpoint holds: whose it is, where the loop was, and the engine that writes the rest. `leads`: this rank
    is the first of its host, which keeps what its own ranks write."""

    engine: Savable
    identity: RunIdentity
    state: TrainingState
    leads: bool = True


def _digest(path: Path, alive: Heartbeat) -> str:
    with own_files.opened(path) as file:
        return sha256(file, alive)


def _digests(folder: Path, names: list[str], alive: Heartbeat = lambda: None) -> Iterator[tuple[str, str]]:
    """Each name and the SHA-256 of its file. Hashing releases Python's lock, so threads help."""
    with ThreadPoolExecutor(8) as pool:
        yield from zip(names, pool.map(lambda name: _digest(folder / name, alive), names))


def _sum_line(facts: bytes) -> bytes:
    return f"{hashlib.sha256(facts).hexdigest()}  {FACTS}\n".encode()


def step(tag: str) -> int:
    """The optimizer steps that the checkpoint `tag` was written after."""
    return int(tag.split("-")[1])


def tags(root: Path) -> list[str]:
    """The checkpoints in `root`, oldest first; a copy that somebody made of one (step-7.bak) does not count."""
    return sorted((p.name for p in root.glob("step-*") if re.fullmatch(r"step-[0-9]+", p.name)), key=step)


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in `folder`, some of which may just be written, renamed or removed."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def check_room(root: Path) -> None:
    """Raises a UserError when another checkpoint like the newest does not fit, before a rank fails halfway."""
    known = tags(root)
    if not known:
        return
    need, free = ROOM * folder_bytes(root / known[-1]), shutil.disk_usage(root).free
    if free < need:
        raise UserError(f"no room for a checkpoint: {root} has {free / 2**20:.0f} MiB free, one takes "
                        f"{need / 2**20:.0f}", "make room there; the run continues and tries again")


def save(root: Path, contents: Contents, keep: int, alive: Heartbeat = lambda: None) -> None:
    """Write a checkpoint, of which the newest `keep` stay. All ranks call this. `alive` is called while the files are
    read and synced."""
    import torch.distributed as dist

    tag, first = f"step-{contents.state.step}", contents.leads
    temporary = f".{tag}"
    try:
        if first:
            _remove(root / temporary)
            (root / temporary).mkdir(parents=True)
        dist.barrier()
        with full_disk_named(root):
            contents.engine.save(root, temporary)
        dist.barrier()
        if first:
            _seal(root / temporary, contents, dist.get_world_size(), alive)
            sync_tree(root / temporary, alive)
            replace_folder(root / temporary, root / tag)
        dist.barrier()  # an older one goes when every host has the new one
        if first:
            for old in tags(root)[:-keep]:
                _remove(root / old)
    except BaseException:
        _remove(root / temporary)
        raise


def _seal(folder: Path, contents: Contents, ranks: int, alive: Heartbeat) -> None:
    """Write down what is in the folder of a new checkpoint."""
    own_files.close_to_others(folder)
    sizes = dict(own_files.walk(folder))
    record = CheckpointRecord(facts=contents.identity, ranks=ranks, state=contents.state, files={
        name: (sizes[name], digest) for name, digest in _digests(folder, sorted(sizes), alive)})
    write_json(folder / FACTS, record.as_json())
    write_text(folder / SUM, _sum_line((folder / FACTS).read_bytes()).decode())
    own_files.close_to_others(folder)


def _remove(path: Path) -> None:
    """Remove a checkpoint, or whatever has taken its place, as far as that can be."""
    with suppress(OSError):
        remove(path)


def examined(root: Path, tag: str, identity: RunIdentity, say: Callable[[str], None]) -> Optional[CheckpointRecord]:
    """What the checkpoint `tag` says of itself, where it is there. It must be whole, this user's own and of this run;
    else it is renamed to unused-*, and `say` gets why."""
    if tag not in tags(root):
        return None
    try:
        return _usable(root / tag, identity)
    except UnusableError as reason:
        for line in put_aside(root, tag, str(reason)):
            say(line)
        return None


def put_aside(root: Path, tag: str, reason: str) -> list[str]:
    """Rename a checkpoint, where it is there, so that it is not used; what there is to say about it."""
    if tag not in tags(root):
        return []
    names = (f"unused-{tag}{end}" for end in ("", *(f".{number}" for number in range(2, 1000))))
    aside = next(name for name in names if not (root / name).is_symlink() and not (root / name).exists())
    replace(root / tag, root / aside)
    return [f"the checkpoint {tag} {reason} and is not used; it is now {aside}"]


def any_intact(root: Path) -> bool:
    """Whether a run could resume from one of the checkpoints in `root`. All of their files are read."""
    for tag in reversed(tags(root)):
        with suppress(UnusableError):
            _intact(root / tag)
            return True
    return False


def run_of(root: Path) -> str:
    """The fingerprint of the run whose newest checkpoint this is, as far as its debzero.json can be read; else
    empty."""
    for tag in reversed(tags(root)):
        with suppress(UnusableError, OSError, own_files.ForeignFileError):
            return _record(root / tag, dict.fromkeys((FACTS, SUM), 0)).facts.fingerprint
    return ""


def _usable(folder: Path, identity: RunIdentity) -> CheckpointRecord:
    """What the checkpoint's debzero.json says. Raises an UnusableError, or an OSError that somebody can help with."""
    record = _intact(folder)
    other = [key for key, value in identity if getattr(record.facts, key) != value]
    if other:
        raise UnusableError(f"is of another run (not the same: {', '.join(other)})")
    return record


def _intact(folder: Path) -> CheckpointRecord:
    """As _usable, of whichever run the checkpoint is."""
    try:
        files = dict(own_files.walk(folder))
        record = _record(folder, files)
        odd = sorted(name for name in {*files, *record.files} - {FACTS, SUM}
                     if files.get(name) != record.files.get(name, (None,))[0])
        odd = odd or [name for name, digest in _digests(folder, list(record.files)) if digest != record.files[name][1]]
    except own_files.ForeignFileError as error:
        raise UnusableError(f"cannot be trusted ({error})") from None
    except OSError as error:
        if error.errno not in DAMAGES:
            raise
        odd = [f"{error.filename or folder.name}: {error.strerror}"]
    if odd:
        raise UnusableError(f"is damaged ({', '.join(map(printable, odd[:3]))})")
    return record


def _record(folder: Path, files: dict[str, int]) -> CheckpointRecord:
    if SUM not in files or FACTS not in files:
        lost = SUM if FACTS in files else FACTS
        raise UnusableError(f"has no {lost} (damaged, or of the first release, whose checkpoints held pickle)")
    facts = own_files.read(folder / FACTS, FACTS_LIMIT)
    if own_files.read(folder / SUM, len(_sum_line(b""))) != _sum_line(facts):
        raise UnusableError(f"is damaged ({FACTS})")
    try:
        record = CheckpointRecord.model_validate_json(facts)
    except ValidationError as error:
        raise UnusableError(f"is damaged ({FACTS}: {error.errors()[0]['msg']})") from None
    if folder.name != f"step-{record.state.step}":
        raise UnusableError(f"is damaged ({FACTS} is of step {record.state.step})")
    return record


def is_sharded(names: list[str]) -> bool:
    """Whether each rank holds a part of the optimizer's states, by the names of a checkpoint's files. Where all hold
    the same, any number of ranks can load it."""
    return any(name.endswith("_optim_states.pt") for name in names)


def drop_temporary(root: Path, name: str) -> None:
    _remove(root / name)
