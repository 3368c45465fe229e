"""From the job's `data:` to tokenised training and held-out samples on disk, which all ranks then open."""
from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from debzero import models, sections
from debzero.errors import UserError
from debzero.files import write_json
from debzero.job import SECTIONS_DATASET, Data
from debzero.plan import Plan, data_files

FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
HELD_OUT = 0.1  # of debian-sections, when the job does not say


@dataclass(frozen=True)
class Prepared:
    """Tokenised samples: columns input_ids, (token_type_ids,) attention_mask, labels, length."""

    train: Any
    held_out: Any
    labels: list[str]
    digest: str
    tokenizer: Any

    @property
    def majority_accuracy(self) -> float:
        """What always answering the commonest training label scores on the held-out samples."""
        commonest = Counter(self.train["labels"]).most_common(1)[0][0]
        return float(np.mean(np.asarray(self.held_out["labels"]) == commonest))


def local_files(dataset: str) -> dict[str, Path]:
    """Split name -> file of a local data set: a file is all training, a folder holds train.*, validation.*, test.*."""
    path = Path(dataset)
    if not path.is_dir():
        return {"train": path}
    named = {p.stem: p for p in data_files(dataset) if p.suffix in FORMATS}
    return {split: named[split] for split in ("train", "validation", "test") if split in named}


def _raw(data: Data, cache: Path, seed: int) -> tuple[Any, Any]:
    """The training and held-out rows as `datasets` tables."""
    import datasets

    datasets.disable_progress_bars()
    if data.dataset == SECTIONS_DATASET:
        path = sections.build(cache, data.held_out or HELD_OUT)
        rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(cache / "arrow"))
        side = np.asarray(rows["held_out"])
        return rows.select(np.flatnonzero(~side)), rows.select(np.flatnonzero(side))
    if Path(data.dataset).is_absolute():
        files = local_files(data.dataset)
        missing = [str(f) for f in files.values() if not f.is_file()] or ([] if files else [data.dataset])
        if missing:
            raise UserError(f"the data file {missing[0]} is not there any more", "put it back, or change data.dataset")
        kind = FORMATS[next(iter(files.values())).suffix]
        names = {split: str(file) for split, file in files.items()}
        try:
            splits = datasets.load_dataset(kind, data_files=names, cache_dir=str(cache / "arrow"))
        except datasets.exceptions.DatasetGenerationError as error:
            raise UserError(f"{data.dataset} cannot be read as {kind}: {error.__cause__ or error}",
                            "correct the file; every row needs the same columns") from error
    else:
        name, _, config = data.dataset.rpartition("/") if data.dataset.startswith("glue/") else (data.dataset, "", None)
        splits = datasets.load_dataset(name, config)
    if "validation" in splits:
        return splits["train"], splits["validation"]
    if data.held_out:
        cut = splits["train"].train_test_split(test_size=data.held_out, seed=seed)
        return cut["train"], cut["test"]
    if "test" in splits:
        return splits["train"], splits["test"]
    raise UserError(f"{data.dataset} has no validation split", "set `data.held_out: 0.1` to keep a share of the training rows")


def _check_columns(data: Data, columns: list[str]) -> None:
    for column in [*data.text, data.label]:
        if column not in columns:
            raise UserError(f"{data.dataset} has no column {column!r}; its columns are {', '.join(columns)}",
                            "set data.text and data.label to columns it has")


def _label_names(train: Any, column: str) -> list[str]:
    feature = train.features[column]
    if hasattr(feature, "names"):
        return list(feature.names)
    values = set(train[column])
    if None in values:
        raise UserError(f"row {train[column].index(None) + 1} of the training data has no {column}", "fill it in or remove it")
    if any(isinstance(v, float) and not v.is_integer() for v in values):
        raise UserError(f"the column {column!r} holds numbers, not classes (for example {next(iter(values))})",
                        "name a column of class labels in data.label")
    return [str(v) for v in (sorted(values) if all(isinstance(v, (int, float)) for v in values) else sorted(map(str, values)))]


def _tokenise(rows: Any, data: Data, tokenizer: Any, labels: list[str]) -> Any:
    numbers = {name: number for number, name in enumerate(labels)}
    named = hasattr(rows.features[data.label], "names")

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [[str(text) if text is not None else "" for text in batch[column]] for column in data.text]
        encoded = dict(tokenizer(*texts, truncation=True, max_length=data.max_length))
        found = batch[data.label]
        encoded["labels"] = found if named else [numbers.get(str(value), -1) for value in found]
        encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
        return encoded

    made = rows.map(encode, batched=True, remove_columns=rows.column_names)
    bad = next((i for i, label in enumerate(made["labels"]) if not 0 <= label < len(labels)), None)
    if bad is not None:
        raise UserError(f"row {bad + 1} of the held-out data has the label {rows[bad][data.label]!r}, which no training row has",
                        f"use only labels of the training data: {', '.join(labels[:20])}")
    return made


def prepare(plan: Plan, cache: Path) -> Path:
    """Read, split and tokenise into a folder of `cache` (one rank does this); done before, it is reused."""
    import datasets

    job = plan.job
    facts = [job.data.model_dump(), job.model, job.train.seed, plan.fingerprint if Path(job.data.dataset).is_absolute() else ""]
    if job.data.dataset == SECTIONS_DATASET:
        facts.append(sections.build(cache, job.data.held_out or HELD_OUT).name)
    folder = cache / ("tokenised-" + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16])
    if (folder / "data.json").is_file():
        return folder
    for stale in cache.glob("*tokenised-*"):
        shutil.rmtree(stale)
    train, held_out = _raw(job.data, cache, job.train.seed)
    _check_columns(job.data, train.column_names)
    labels = _label_names(train, job.data.label)
    if len(labels) < 2 or not len(held_out):
        raise UserError(f"{job.data.dataset} has {len(labels)} classes and {len(held_out)} held-out rows",
                        "at least two classes and one held-out row are needed")
    tokenizer = models.tokenizer(job.model, (text for column in job.data.text for text in train[column]), job.data.max_length)
    temporary = cache / f".{folder.name}"
    splits = {"train": _tokenise(train, job.data, tokenizer, labels), "held_out": _tokenise(held_out, job.data, tokenizer, labels)}
    datasets.DatasetDict(splits).save_to_disk(str(temporary))
    tokenizer.save_pretrained(temporary / "tokenizer")
    ids = hashlib.sha256(str([splits[s][:]["input_ids"] for s in splits]).encode()).hexdigest()[:16]
    write_json(temporary / "data.json", {"labels": labels, "digest": ids})
    temporary.rename(folder)
    shutil.rmtree(cache / "arrow", ignore_errors=True)  # the raw rows are not needed again
    return folder


def load(folder: Path) -> Prepared:
    import datasets
    from transformers import AutoTokenizer

    facts = json.loads((folder / "data.json").read_text())
    splits = datasets.load_from_disk(str(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    return Prepared(splits["train"], splits["held_out"], facts["labels"], facts["digest"], tokenizer)


class Collator:
    """Rows -> tensors on the device, padded to the longest row (on a GPU to a multiple of 8, for its tensor cores)."""

    def __init__(self, tokenizer: Any, device: Any, multiple: Optional[int]) -> None:
        self.tokenizer, self.device, self.multiple = tokenizer, device, multiple

    def __call__(self, rows: Any, indices: np.ndarray) -> tuple[dict[str, Any], Any]:
        """Model inputs and labels of rows[indices]; for no indices at all, row 0 stands in (its result is discarded)."""
        import torch

        batch = rows[indices if len(indices) else [0]]
        labels = torch.tensor(batch.pop("labels"), device=self.device)
        batch.pop("length")
        inputs = self.tokenizer.pad(batch, padding=True, pad_to_multiple_of=self.multiple, return_tensors="pt")
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}, labels
