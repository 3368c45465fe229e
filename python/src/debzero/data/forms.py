"""What people bring that is none of the formats: recognised by a file's first bytes or its name, with what to do."""
from __future__ import annotations

import re
from pathlib import Path

from debzero.base.reading import LFS_POINTER
from debzero.data.faults import broken
from debzero.job.local_files import FORMATS, files_of

OTHERS = {  # by the first bytes
    b"\x1f\x8b": ("is compressed by gzip", "unpack it: gunzip"),
    b"PK\x03\x04": ("is a zip archive or an Excel workbook", "unpack it, or save the sheet as CSV UTF-8"),
    b"\xd0\xcf\x11\xe0": ("is an Excel workbook", "save the sheet as CSV UTF-8"),
    LFS_POINTER: ("is a pointer of Git LFS in place of the file", "fetch the file: git lfs pull"),
}
EXCELS = (".xlsx", ".xls", ".xlsm", ".ods")
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz")
TABLES = (".tsv", ".tab", ".psv", ".ssv")
VALIDATION = ("val", "valid", "dev", "eval")  # what else the validation split is called
ELSEWHERE = re.compile(r"/[a-z][a-z0-9]{1,9}:/")  # an address, after it was made a path


def refuse_others(path: Path, start: bytes) -> None:
    """Raises a DataError for a file that begins as one of another kind does."""
    for mark, (reason, fix) in OTHERS.items():
        if start.startswith(mark):
            raise broken(f"{path.name} {reason}", fix)
    if start.startswith(b"PAR1") and path.suffix != ".parquet":
        raise broken(f"{path.name} is a parquet file", f"name it {path.stem}.parquet")


def fix_of_name(path: Path) -> str:
    """What to do about a data file whose suffix is none of the formats."""
    suffix = path.suffix.lower()
    if suffix in FORMATS:
        return f"name it {path.stem}{suffix}"
    if suffix in EXCELS:
        return "save the sheet as CSV UTF-8"
    if suffix in PACKED:
        return "unpack it"
    if suffix in TABLES:
        return f"name it {path.stem}.csv: the separator is recognised"
    if suffix in (".ndjson", ".jsonlines"):
        return f"name it {path.stem}.jsonl"
    return "name a table .csv, objects .json or .jsonl; write anything else as one of these, or as parquet"


def fix_of_folder(folder: Path) -> str:
    """What to do about a folder without a training file."""
    train = [file for file in files_of(str(folder)) if file.stem.lower().startswith("train") and file.is_file()]
    if len(train) > 1:
        return f"join {train[0].name}, {train[1].name}{', ...' if len(train) > 2 else ''} into one file named train"
    if train and train[0].stem.lower() == "train":
        return f"{train[0].name}: " + fix_of_name(train[0].with_stem("train"))
    return "name the file with the training rows train, with its suffix"


def fix_of_path(path: Path) -> str:
    """What to do about a path that is not there, where its form says it; else empty."""
    if path.is_symlink():
        return f"it is a link to {path.readlink()}: correct the link"
    if ELSEWHERE.search(str(path)):
        return "data is read from this host or the Hugging Face hub: download the file first"
    if "\\" in path.name:
        return "write the path as this host has it, with / between its parts"
    return "name one file, or a folder with train.* and validation.*" if "*" in path.name else ""
