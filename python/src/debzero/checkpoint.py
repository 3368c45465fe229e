"""Checkpoints at epoch ends: whole or not there, the newest two kept, `latest` naming the newest."""
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Optional

import torch.distributed as dist

from debzero.files import read_json, replace, sync_tree, write_json, write_text

KEEP = 2


def save(engine: Any, root: Path, epoch: int, facts: dict[str, Any]) -> None:
    """All ranks call this. `facts` must agree for the checkpoint to be used again."""
    tag, temporary, first = f"epoch-{epoch}", f".epoch-{epoch}", dist.get_rank() == 0
    try:
        if first:
            shutil.rmtree(root / temporary, ignore_errors=True)
            (root / temporary).mkdir(parents=True)
        dist.barrier()
        engine.save(root, temporary)
        dist.barrier()
        if first:
            write_json(root / temporary / "debzero.json", {**facts, "epoch": epoch})
            sync_tree(root / temporary)
            replace(root / temporary, root / tag)
            write_text(root / "latest", tag)
            for old in _tags(root)[:-KEEP]:
                shutil.rmtree(root / old)
        dist.barrier()
    except BaseException:
        shutil.rmtree(root / temporary, ignore_errors=True)
        raise


def _tags(root: Path) -> list[str]:
    return sorted((p.name for p in root.glob("epoch-*")), key=lambda name: int(name.split("-")[1]))


def newest(root: Path, facts: dict[str, Any]) -> tuple[Optional[str], str]:
    """The tag to go on from, if its run was this one; and what to say about it."""
    latest = root / "latest"
    tag = latest.read_text().strip() if latest.is_file() else ""
    if not tag:
        return None, ""
    found = read_json(root / tag / "debzero.json")
    other = [key for key, value in facts.items() if found.get(key) != value]
    if other:
        return None, f"the checkpoint {tag} is of another run (not the same: {', '.join(other)}): starting anew"
    return tag, f"going on from the checkpoint {tag}"
