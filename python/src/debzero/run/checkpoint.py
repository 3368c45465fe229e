"""Checkpoints: whole or not there, each with the checksums of its files, the newest few kept.

A checkpoint is the folder step-<optimizer steps done>. It is written under another name, synced and renamed, and used
only if every file still has the size and SHA-256 that its debzero.json lists; else the one before it is. """
from __future__ import annotations

import errno
import hashlib
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

from debzero.base.errors import UserError
from debzero.base.files import Alive, read_json, replace_folder, sync_tree, write_json, write_text

FACTS = "debzero.json"
RESHARDED = ".resharded"  # hidden: whatever a crash leaves of it goes at the next start
DAMAGES = (errno.EIO, errno.EUCLEAN)  # a bad block, a broken file system
ROOM = 1.1  # a new checkpoint is about as large as the last one


class Found(NamedTuple):
    """A checkpoint to go on from; `state` is what the training loop had stored in it."""

    tag: str
    ranks: int
    state: dict[str, Any]


def _digest(path: Path, alive: Alive) -> tuple[int, str]:
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            sha.update(block)
            alive()
    return path.stat().st_size, sha.hexdigest()


def _files(folder: Path, alive: Alive = lambda: None) -> dict[str, list[Any]]:
    """{relative name: [bytes, SHA-256]} of all files but FACTS itself. Hashing leaves Python's lock, so threads
    help."""
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != FACTS)
    with ThreadPoolExecutor(8) as pool:
        return {name: list(found)
                for name, found in zip(names, pool.map(lambda name: _digest(folder / name, alive), names))}


def step(tag: str) -> int:
    """The optimizer steps that the checkpoint `tag` was written after."""
    return int(tag.split("-")[1])


def tags(root: Path) -> list[str]:
    """The checkpoints in `root`, oldest first; a copy that somebody made of one (step-7.bak) is none."""
    return sorted((p.name for p in root.glob("step-*") if re.fullmatch(r"step-\d+", p.name)), key=step)


def size(folder: Path) -> int:
    """Bytes of the files in `folder`, some of which may be on the move."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def room(root: Path) -> None:
    """Raise a UserError when another checkpoint like the newest does not fit: better known before a rank fails
    halfway."""
    known = tags(root)
    if not known:
        return
    need, free = ROOM * size(root / known[-1]), shutil.disk_usage(root).free
    if free < need:
        raise UserError(f"no room for a checkpoint: {root} has {free / 2**20:.0f} MiB free, one takes "
                        f"{need / 2**20:.0f}",
                        "make room there; the run goes on and tries again")


def save(engine: Any, root: Path, step: int, facts: dict[str, Any], state: dict[str, Any], keep: int,
         alive: Alive = lambda: None) -> None:
    """All ranks call this. `facts` must agree for the checkpoint to be used again; `state` is kept for the training loop; `alive` is
    called while the files are read and synced."""
    import torch.distributed as dist

    tag, temporary, first = f"step-{step}", f".step-{step}", dist.get_rank() == 0
    try:
        if first:
            shutil.rmtree(root / temporary, ignore_errors=True)
            (root / temporary).mkdir(parents=True)
        dist.barrier()
        engine.save(root, temporary)
        dist.barrier()
        if first:
            write_json(root / temporary / FACTS, {
                "facts": facts, "ranks": dist.get_world_size(), "state": state,
                "files": _files(root / temporary, alive)})
            sync_tree(root / temporary, alive)
            replace_folder(root / temporary, root / tag)
            write_text(root / "latest", tag)  # for DeepSpeed's own tools
            for old in tags(root)[:-keep]:
                shutil.rmtree(root / old)
        dist.barrier()
    except BaseException:
        shutil.rmtree(root / temporary, ignore_errors=True)
        raise


def newest(root: Path, facts: dict[str, Any], say: Callable[[str], None]) -> Optional[Found]:
    """The newest checkpoint that is whole and of this run. Newer ones are put aside as unused-*, and why is said."""
    for tag in reversed(tags(root)):
        found = read_json(root / tag / FACTS)
        other = [key for key, value in facts.items() if found.get("facts", {}).get(key) != value]
        try:
            files = _files(root / tag)
            damaged = sorted(name for name, known in found.get("files", {}).items() if files.get(name) != known)
        except OSError as error:
            if error.errno not in DAMAGES:
                raise
            damaged = [f"{error.filename or tag}: {error.strerror}"]
        if not found or damaged:
            reason = f"is damaged ({', '.join(damaged[:3]) or FACTS})"
        elif other:
            reason = f"is of another run (not the same: {', '.join(other)})"
        else:
            return Found(tag, int(found["ranks"]), found["state"])
        say(f"the checkpoint {tag} {reason} and put aside")
        replace_folder(root / tag, root / f"unused-{tag}")
    return None


def is_dealt(folder: Path) -> bool:
    """Whether each rank holds a part of the optimizer's states; where all hold the same, any number of ranks can load
    it."""
    return any(folder.glob("*_optim_states.pt"))


def reshard(root: Path, tag: str) -> None:
    """Make the copy RESHARDED of a DeepSpeed checkpoint of stage 1 or 2, which any number of ranks can load. One rank
    does this.

    DeepSpeed's own converter makes it, a universal checkpoint, in a process of its own: it starts workers and talks.
    """
    drop_resharded(root)
    made = subprocess.run(
        [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(root / tag),
         "--output_folder", str(root / RESHARDED), "--num_extract_workers", "1", "--num_merge_workers", "1",
         "--inject_missing_state"],
        capture_output=True, text=True)
    if made.returncode:
        raise UserError(f"DeepSpeed could not convert the checkpoint {tag} for another number of ranks: "
                        f"{(made.stderr or made.stdout).strip().splitlines()[-1][:200]}",
                        "start the job with as many ranks as before (`--ranks`)")


def drop_resharded(root: Path) -> None:
    shutil.rmtree(root / RESHARDED, ignore_errors=True)
    (root / "latest_universal").unlink(missing_ok=True)
