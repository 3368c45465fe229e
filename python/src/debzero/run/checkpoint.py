"""Checkpoints: whole or not there, each with the checksums of its files, the newest few kept.

A checkpoint is the folder step-<optimizer steps done>. It is written under another name, synced and renamed, and used
only if every file still has the size and SHA-256 that its debzero.json lists; else the one before it is.
"""
from __future__ import annotations

import errno
import hashlib
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Callable, NamedTuple, Optional, Protocol

from debzero.base import interpreter
from debzero.base.errors import UserError
from debzero.base.failures import full_disk_named
from debzero.base.files import Heartbeat, replace_folder, sync_tree, write_json, write_text
from debzero.run.records import CheckpointRecord, RunIdentity, TrainingState, read_record

FACTS = "debzero.json"
RESHARDED = ".resharded"  # hidden: whatever a crash leaves of it goes at the next start
DAMAGES = (errno.EIO, errno.EUCLEAN)  # a bad block, a broken file system
ROOM = 1.1  # a new checkpoint is about as large as the last one


class Found(NamedTuple):
    """A checkpoint to resume from: its folder's name in checkpoints/, and what its debzero.json says."""

    tag: str
    record: CheckpointRecord


class Savable(Protocol):
    """What a checkpoint needs of an engine."""

    def save(self, root: Path, tag: str) -> None:
        """Write this rank's part into the folder root/tag, which is there."""


class Contents(NamedTuple):
    """What a checkpoint holds: whose it is, where the loop was, and the engine that writes the rest."""

    engine: Savable
    identity: RunIdentity
    state: TrainingState


def _digest(path: Path, alive: Heartbeat) -> tuple[int, str]:
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            sha.update(block)
            alive()
    return path.stat().st_size, sha.hexdigest()


def _files(folder: Path, alive: Heartbeat = lambda: None) -> dict[str, tuple[int, str]]:
    """{relative name: (bytes, SHA-256)} of all files but FACTS itself. Hashing releases Python's lock, so threads
    help."""
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != FACTS)
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(names, pool.map(lambda name: _digest(folder / name, alive), names)))


def step(tag: str) -> int:
    """The optimizer steps that the checkpoint `tag` was written after."""
    return int(tag.split("-")[1])


def tags(root: Path) -> list[str]:
    """The checkpoints in `root`, oldest first; a copy that somebody made of one (step-7.bak) does not count."""
    return sorted((p.name for p in root.glob("step-*") if re.fullmatch(r"step-\d+", p.name)), key=step)


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

    tag, first = f"step-{contents.state.step}", dist.get_rank() == 0
    temporary = f".{tag}"
    try:
        if first:
            shutil.rmtree(root / temporary, ignore_errors=True)
            (root / temporary).mkdir(parents=True)
        dist.barrier()
        with full_disk_named(root):
            contents.engine.save(root, temporary)
        dist.barrier()
        if first:
            record = CheckpointRecord(facts=contents.identity, ranks=dist.get_world_size(), state=contents.state,
                                      files=_files(root / temporary, alive))
            write_json(root / temporary / FACTS, record.as_json())
            sync_tree(root / temporary, alive)
            replace_folder(root / temporary, root / tag)
            write_text(root / "latest", tag)  # for DeepSpeed's own tools
            for old in tags(root)[:-keep]:
                shutil.rmtree(root / old)
        dist.barrier()
    except BaseException:
        shutil.rmtree(root / temporary, ignore_errors=True)
        raise


def newest(root: Path, identity: RunIdentity, say: Callable[[str], None]) -> Optional[Found]:
    """The newest checkpoint that is whole and of this run. Newer ones are renamed to unused-*, and `say` gets why."""
    for tag in reversed(tags(root)):
        record = read_record(root / tag / FACTS, CheckpointRecord)
        reason = _unusable(root / tag, record, identity)
        if record and not reason:
            return Found(tag, record)
        say(f"the checkpoint {tag} {reason} and is not used")
        replace_folder(root / tag, root / f"unused-{tag}")
    return None


def _unusable(folder: Path, record: Optional[CheckpointRecord], identity: RunIdentity) -> str:
    """Why a checkpoint cannot be used; empty where it can."""
    if record is None:
        return f"is damaged ({FACTS})"
    try:
        files = _files(folder)
        damaged = sorted(name for name, known in record.files.items() if files.get(name) != known)
    except OSError as error:
        if error.errno not in DAMAGES:
            raise
        damaged = [f"{error.filename or folder.name}: {error.strerror}"]
    if damaged:
        return f"is damaged ({', '.join(damaged[:3])})"
    other = [key for key, value in identity if getattr(record.facts, key) != value]
    return f"is of another run (not the same: {', '.join(other)})" if other else ""


def is_sharded(folder: Path) -> bool:
    """Whether each rank holds a part of the optimizer's states. Where all hold the same, any number of ranks can load
    it."""
    return any(folder.glob("*_optim_states.pt"))


def reshard(root: Path, tag: str) -> None:
    """Make the copy RESHARDED of a DeepSpeed checkpoint of stage 1 or 2, which any number of ranks can load. One rank
    does this. Raises a UserError where DeepSpeed cannot.

    DeepSpeed's own converter makes it, a universal checkpoint. It runs in a process of its own, because it starts
    workers and prints.
    """
    drop_resharded(root)
    converter = subprocess.run(
        interpreter.module(
            "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(root / tag), "--output_folder",
            str(root / RESHARDED), "--num_extract_workers", "1", "--num_merge_workers", "1", "--inject_missing_state"),
        capture_output=True, text=True)
    if converter.returncode:
        raise UserError(f"DeepSpeed could not convert the checkpoint {tag} for another number of ranks: "
                        f"{(converter.stderr or converter.stdout).strip().splitlines()[-1][:200]}",
                        "start the job with as many ranks as before (`--ranks`)")


def drop_resharded(root: Path) -> None:
    shutil.rmtree(root / RESHARDED, ignore_errors=True)
    (root / "latest_universal").unlink(missing_ok=True)
