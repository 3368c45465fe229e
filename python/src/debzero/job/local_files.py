"""Which names in a job mean files of this host, and where those lie."""
from __future__ import annotations

import difflib
import os
from itertools import chain, islice
from pathlib import Path
from typing import Optional

from debzero.base.files import unreadable
from debzero.job.schema import SECTIONS_DATASET, Data

FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
# The hub's data sets that have names without an owner: what follows is a configuration. All others are owner/name.
OWNERLESS = ("glue", "super_glue", "wikitext")
SPLITS = ("train", "validation", "test")
MOST_LISTED = 10_000  # of a folder's entries, for a name that is near
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
    if not os.path.isdir(dataset):
        return {"train": Path(dataset)}
    named = {p.stem: p for p in files_of(dataset) if p.suffix in FORMATS}
    return {split: named[split] for split in SPLITS if split in named}


def files_read(data: Data) -> dict[str, Path]:
    """As local_files, without a test split that a job with other held-out rows never reads."""
    files = local_files(data.dataset)
    if "validation" in files or data.held_out:
        files.pop("test", None)
    return files


def near_names(name: str, folder: Path, model: bool) -> list[str]:
    """The names of local models or data sets that may be meant by one in a job file in `folder` that is not there, the
    nearest first."""
    path = Path(os.path.expanduser(name))
    beside = folder / path.parent
    try:
        with os.scandir(beside) as entries:
            listed = sorted(entry.name for entry in islice(entries, MOST_LISTED) if not entry.name.startswith("."))
    except (OSError, ValueError):  # it is not there, or not for this user
        return []
    names: dict[str, list[str]] = {}  # with and without their suffix
    for found in listed:
        for known in {found.lower(), Path(found).stem.lower()}:
            names.setdefault(known, []).append(found)
    near = difflib.get_close_matches(path.name.lower(), names, 20, 0.75)
    suit = (found for found in dict.fromkeys(chain.from_iterable(map(names.__getitem__, near)))
            if _holds(beside / found, model))
    return [str(path.parent / found) for found in islice(suit, 3)]


def did_you_mean_path(path: Path, model: bool) -> str:
    """What to do about a path that is not there, where a near one is; else empty."""
    near = near_names(str(path), path.parent, model)
    return f"did you mean {near[0]}?" if near else ""


def _holds(path: Path, model: bool) -> bool:
    """Whether a job could name this as its model, or as its data."""
    if model:
        return os.path.isfile(path / "config.json")
    if os.path.isdir(path):
        return "train" in local_files(str(path))
    return path.suffix in FORMATS and os.path.isfile(path)


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
