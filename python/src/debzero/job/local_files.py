"""Which names in a job mean files of this host, and where those lie."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

from debzero.base.files import unreadable
from debzero.job.schema import SECTIONS_DATASET

FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
# The hub's data sets that have names without an owner: what follows is a configuration. All others are owner/name.
OWNERLESS = ("glue", "super_glue", "wikitext")
OF_A_RUN = (".lock", "status.json")  # the output folder of a job has one of them from its start on


def within(folder: Path, path: str) -> str:
    """The absolute path that `path` means in a job file in `folder`."""
    return str((folder / os.path.expanduser(path)).absolute())


def is_path(name: str, folder: Path) -> bool:
    """Whether a model's or data set's name in a job file in `folder` means this host's files, not the hub's. The
    current folder has no say in it, and the folder of a run that is called like its model is not that model."""
    if name == SECTIONS_DATASET:
        return False
    looks_like_one = name.startswith(("/", "./", "../", "~")) or Path(name).suffix in FORMATS
    there = os.path.exists(folder / name) and not any(os.path.exists(folder / name / mark) for mark in OF_A_RUN)
    return looks_like_one or there or bool(unreadable(folder / name))


def local_files(dataset: str) -> dict[str, Path]:
    """Split name -> file of a local data set: a file is all training, a folder holds train.*, validation.*, test.*."""
    path = Path(dataset)
    if not path.is_dir():
        return {"train": path}
    named = {p.stem: p for p in files_of(dataset) if p.suffix in FORMATS}
    return {split: named[split] for split in ("train", "validation", "test") if split in named}


def hub_name(dataset: str) -> tuple[str, Optional[str]]:
    """Name and configuration of a hub's data set, written name, name/configuration or owner/name/configuration."""
    parts = dataset.split("/")
    if len(parts) == 3 or (len(parts) == 2 and parts[0] in OWNERLESS):
        return "/".join(parts[:-1]), parts[-1]
    return dataset, None


def files_of(path: str) -> list[Path]:
    """The files of a local data set or model, which is a file or a folder."""
    listed = os.path.isdir(path) and os.access(path, os.R_OK | os.X_OK)  # if not, debzero.check reports it
    return sorted(Path(path).iterdir()) if listed else [Path(path)]
