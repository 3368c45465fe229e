"""Where rows come from: a local file, a folder of them, the hub, or this host's package descriptions."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from debzero.base.errors import UserError
from debzero.base.text import count_text
from debzero.data import debian_sections, hub
from debzero.data.hub import no_code
from debzero.job.local_files import FORMATS, local_files
from debzero.job.schema import SECTIONS_DATASET, Data

HELD_OUT = 0.1  # of debian-sections, when the job does not say


def raw_rows(data: Data, cache: Path, seed: int) -> tuple[Any, Any]:
    """The training and held-out rows as `datasets` tables, which lie on the disk."""
    import datasets

    datasets.disable_progress_bars()
    if data.dataset == SECTIONS_DATASET:
        path = debian_sections.build(cache, data.held_out or HELD_OUT)
        rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(cache / "arrow"))
        side = np.asarray(rows["held_out"])
        return rows.select(np.flatnonzero(~side)), rows.select(np.flatnonzero(side))
    local = Path(data.dataset).is_absolute()
    splits = _read_files(data.dataset, cache) if local else hub.read(data.dataset, data.revision)
    if "validation" in splits:
        return splits["train"], splits["validation"]
    if data.held_out:
        try:
            cut = splits["train"].train_test_split(test_size=data.held_out, seed=seed)
        except ValueError:
            raise UserError(f"{data.dataset} has {count_text(len(splits['train']), 'row')}, too few to keep "
                            f"{data.held_out:g} of them for evaluation", "give it more rows") from None
        return cut["train"], cut["test"]
    if "test" in splits:
        return splits["train"], splits["test"]
    raise UserError(f"{data.dataset} has no validation split",
                    "set `data.held_out: 0.1` to keep a share of the training rows")


def _read_files(dataset: str, cache: Path) -> Any:
    import datasets

    files = local_files(dataset)
    missing = [str(f) for f in files.values() if not f.is_file()] or ([] if files else [dataset])
    if missing:
        raise UserError(f"the data file {missing[0]} is not there any more", "put it back, or change data.dataset")
    kind = FORMATS[next(iter(files.values())).suffix]
    names = {split: str(file) for split, file in files.items()}
    try:
        return datasets.load_dataset(kind, data_files=names, cache_dir=str(cache / "arrow"), **no_code())
    except Exception as error:  # of `datasets`, pandas, pyarrow and json: each has errors of its own
        cause = error.__cause__ or error
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno):  # as of a full disk
            raise
        raise UserError(f"{dataset} cannot be read as {kind}: {' '.join(str(cause).split())[:300]}",
                        "correct the file; every row needs the same columns") from error
