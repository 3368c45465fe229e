"""Where rows come from: a local file, a folder of them, the hub, or this host's package descriptions."""
from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

from debzero.data import debian_sections, hub
from debzero.data.csv_file import CsvFile
from debzero.data.faults import DataError, Fault, broken
from debzero.data.forms import VALIDATION
from debzero.data.json_file import JsonFile
from debzero.data.reading import Rows
from debzero.data.survey import Wanted
from debzero.data.tables import HubRows, ParquetFile
from debzero.job.local_files import FORMATS, files_of, files_read
from debzero.job.schema import SECTIONS_DATASET, Data

HELD_OUT = 0.1  # of debian-sections, when the job does not say


class Parts(NamedTuple):
    """The rows of a data set. Without `held_out` some of `train` are held out: those of `side` (bool[n]), else a
    share. `commit`: of the hub's data."""

    train: Rows
    held_out: Optional[Rows] = None
    side: Optional[np.ndarray] = None
    commit: Optional[str] = None


def parts(data: Data, wanted: Wanted, cache: Path) -> Parts:
    """Raises a DataError, a UserError or an OSError where the rows cannot be had."""
    if data.dataset == SECTIONS_DATASET:
        import pyarrow.parquet

        path = debian_sections.build(cache, data.held_out or HELD_OUT)
        side = pyarrow.parquet.read_table(path, columns=["held_out"]).column(0)
        return Parts(ParquetFile(path, data.label), side=np.asarray(side))
    if Path(data.dataset).is_absolute():
        return local_parts(data, wanted)
    import datasets

    datasets.disable_progress_bars()
    found = hub.read(data.dataset, data.revision)
    rows = {name: HubRows(split, f"{data.dataset}, split {name},", data.label) for name, split in found.items()}
    return _chosen(data, rows)._replace(commit=hub.commit_of(found["train"]) if "train" in found else None)


def local_parts(data: Data, wanted: Wanted) -> Parts:
    """Of a file or a folder on this host."""
    files = files_read(data)
    missing = [file for file in files.values() if not file.is_file()] or ([] if files else [Path(data.dataset)])
    if missing:
        if missing[0].exists() and not missing[0].is_dir():
            raise broken(f"{missing[0]} is no regular file", "name a file or a folder in data.dataset")
        raise broken(f"the data file {missing[0]} is not there any more", "put it back, or change data.dataset")
    others = files_of(data.dataset) if Path(data.dataset).is_dir() else []
    for split in files:
        both = [other.name for other in others if other.stem == split and other.suffix in FORMATS]
        if len(both) > 1:
            raise broken(f"{data.dataset} holds {' and '.join(both)}, and only one of them can be its {split} split",
                         "take the others out of the folder")
    if [*files] == ["train"] and not data.held_out:
        called = next((other for other in others if other.stem.lower() in VALIDATION), None)
        if called is not None:
            raise DataError(Fault("held_out", f"{data.dataset} has no validation split to measure on, but "
                                  f"{called.name}", f"name it validation{called.suffix}"))
    return _chosen(data, {split: opened(path, wanted) for split, path in files.items()})


def opened(path: Path, wanted: Wanted) -> Rows:
    """A file of any of the formats, with its columns known. Raises a DataError where one of the `wanted` is not
    there."""
    if path.suffix == ".parquet":
        return ParquetFile(path, wanted.label or "")
    if path.suffix == ".csv":
        classes = wanted.label if wanted.kind == "class" and wanted.label not in wanted.texts else None
        return CsvFile(path, wanted.columns, classes)
    return JsonFile(path, wanted.columns)


def _chosen(data: Data, rows: dict[str, Any]) -> Parts:
    if "train" not in rows:
        raise broken(f"{data.dataset} has no training split, but {', '.join(rows) or 'nothing'}",
                     "use a data set with a split named train")
    if "validation" in rows:
        return Parts(rows["train"], rows["validation"])
    if not data.held_out and "test" not in rows:
        raise DataError(Fault("held_out", f"{data.dataset} has no validation split to measure on",
                              "set held_out: 0.1 to keep a tenth of the training rows, or give a folder with train.* "
                              "and validation.*"))
    return Parts(rows["train"], None if data.held_out else rows["test"])
