"""From the job's `data:` to tokenised training and held-out samples on disk, which all ranks then open."""
from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Callable

import numpy as np

from debzero.base.errors import UserError
from debzero.base.files import new_folder, write_json
from debzero.base.text import count_text
from debzero.data import debian_sections, seal, tokens
from debzero.data.hub import commit_of
from debzero.data.sources import HELD_OUT, raw_rows
from debzero.data.tokens import Piece, Prepared
from debzero.job.contents import digests
from debzero.job.schema import SECTIONS_DATASET, Data, Job
from debzero.model import source, tasks
from debzero.model.folder import no_code
from debzero.model.positions import check_positions
from debzero.model.tokenizer import Model, load_tokenizer
from debzero.resolve.resolve import ResolvedJob

CHUNK = 2048    # rows read and tokenised at a time: what a set needs in memory does not grow with it
LAYOUT = 1      # of the tokenised folders; with another number all are written anew

Place = Callable[[int], str]  # for messages: where a row of the chunk is in its file


def _check_columns(data: Data, features: dict[str, Any], task: tasks.Task) -> None:
    columns = list(features)
    for column in [*data.text, *([data.label] if task.label != "nothing" else [])]:
        if column not in columns:
            raise UserError(f"{data.dataset} has no column {column!r}; its columns are {', '.join(columns)}",
                            "set data.text and data.label to columns it has")
        if not hasattr(features[column], "dtype") or features[column].dtype in ("list", "dict"):
            raise UserError(f"the column {column!r} of {data.dataset} holds lists or objects",
                            "name columns of texts, numbers or classes in data.text and data.label")


def _label_names(train: Any, column: str) -> list[str]:
    feature = train.features[column]
    if hasattr(feature, "names"):
        return list(feature.names)
    values = set(train.unique(column))
    if None in values:
        row = next(i for i, value in enumerate(train.select_columns(column)) if value[column] is None)
        raise UserError(f"row {row + 1} of the training data has no {column}", "fill it in or remove it")
    if any(isinstance(v, float) and not v.is_integer() for v in values):
        raise UserError(f"the column {column!r} holds numbers, not classes (for example {next(iter(values))})",
                        "name a column of class labels in data.label, or set task: regression")
    return [str(v) for v in (sorted(values) if all(isinstance(v, (int, float)) for v in values)
                             else sorted(map(str, values)))]


def _classes(found: list[Any], labels: list[str], named: bool, place: Place) -> np.ndarray:
    """int32: the class number of each label of some rows; `named`: the data set numbers them itself."""
    numbers = {name: number for number, name in enumerate(labels)}
    classes = [value if named else numbers.get(str(value)) for value in found]
    bad = next((i for i, number in enumerate(classes) if number is None or not 0 <= number < len(labels)), None)
    if bad is not None:
        raise UserError(f"{place(bad)} has the label {found[bad]!r}, which no training row has",
                        f"use only labels of the training data: {', '.join(labels[:20])}")
    return np.asarray(classes, np.int32)


def _values(found: list[Any], place: Place) -> np.ndarray:
    """float32: the numbers to predict for some rows."""
    bad = next((i for i, v in enumerate(found) if isinstance(v, bool) or not isinstance(v, (int, float))
                or not math.isfinite(v)), None)
    if bad is not None:
        raise UserError(f"{place(bad)} has {found[bad]!r} where task regression needs a number",
                        "correct the row, name a column of numbers in data.label, or set task: classification")
    return np.asarray(found, np.float32)


def _answers(tokenizer: Any, limit: int) -> Callable[[list[Any], Place], Piece]:
    """Takes the targets of some rows, one call after the other, to the tokens that the model is to write."""
    kind, written = tokens.smallest(len(tokenizer)), 0
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id

    def pieces(found: list[Any], place: Place) -> Piece:
        nonlocal written
        bad = next((i for i, value in enumerate(found) if value is None), None)
        if bad is not None:
            raise UserError(f"{place(bad)} has no text to answer with", "fill it in or remove it")
        encoded = tokenizer(text_target=[str(value) for value in found], truncation=True, max_length=limit,
                            return_attention_mask=False)["input_ids"]
        # An answer ends where the model writes the end: a tokenizer that marks none would have it write for ever.
        ids = [sample if end in sample or end is None else [*sample[: limit - 1], end] for sample in encoded]
        lengths = np.fromiter(map(len, ids), np.int32, len(ids))
        ends = written + np.cumsum(lengths, dtype=np.int64)
        written = int(ends[-1])
        return {"answer_ids": np.fromiter(chain.from_iterable(ids), kind), "answer_offsets": ends - lengths,
                "answer_lengths": lengths}

    return pieces


def _place(side: str, first: int, number: int) -> str:
    return f"row {first + number + 1} of the {side} data"


def _texts(rows: dict[str, list[Any]], data: Data) -> list[list[str]]:
    """The tokenizer's input: the columns, or with prefixes one text joined from them."""
    columns = [["" if text is None else str(text) for text in rows[column]] for column in data.text]
    if not data.prefix:
        return columns
    return [["".join(chain.from_iterable(zip(data.prefix, texts))) for texts in zip(*columns)]]


def _samples(rows: Any, data: Data, tokenizer: Any, side: str,
             answers: Callable[[list[Any], Place], Piece]) -> Iterator[Piece]:
    """One sample a row, cut off at data.max_length."""
    kind, start = tokens.smallest(len(tokenizer)), 0
    # GPT-2's tokenizer turns an empty text into no token, and a sample needs at least one.
    blank = tokenizer(" ")["input_ids"] or [tokenizer.pad_token_id]
    for first in range(0, len(rows), CHUNK):
        chunk = rows[first : first + CHUNK]
        encoded = tokenizer(*_texts(chunk, data), truncation=True, max_length=data.max_length,
                            return_attention_mask=False)
        ids = [sample or blank for sample in encoded["input_ids"]]
        lengths = np.fromiter(map(len, ids), np.int32, len(ids))
        ends = start + np.cumsum(lengths, dtype=np.int64)
        piece = {"ids": np.fromiter(chain.from_iterable(ids), kind), "offsets": ends - lengths, "lengths": lengths,
                 **answers(chunk[data.label], partial(_place, side, first))}
        if "token_type_ids" in encoded:
            piece["types"] = np.fromiter(chain.from_iterable(encoded["token_type_ids"]), np.uint8)
        start = int(ends[-1])
        yield piece


def _blocks(rows: Any, data: Data, tokenizer: Any) -> Iterator[Piece]:
    """The texts one after the other, each ended by a token of its own, cut into blocks of data.max_length tokens.

    What does not fill the last block is left out, unless it is all there is.
    """
    kind, size = tokens.smallest(len(tokenizer)), data.max_length
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    rest, blocks = np.empty(0, kind), 0
    for first in range(0, len(rows), CHUNK):
        texts = [text for text in _texts(rows[first : first + CHUNK], data)[0] if text]
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"] if texts else []
        stream = np.fromiter(chain.from_iterable([*ids, end] for ids in encoded), kind)
        stream = np.concatenate([rest, stream])
        count = len(stream) // size
        rest = stream[count * size :]
        if count:
            yield {"ids": stream[: count * size], "offsets": (blocks + np.arange(count, dtype=np.int64)) * size,
                   "lengths": np.full(count, size, np.int32)}
            blocks += count
    if not blocks and len(rest) > 1:  # one token has none before it
        yield {"ids": rest, "offsets": np.zeros(1, np.int64), "lengths": np.asarray([len(rest)], np.int32)}


def _facts(job: Job, cache: Path) -> list[Any]:
    """What the tokenised samples depend on."""
    data = job.data
    facts: list[Any] = [LAYOUT, job.task, job.model, job.train.seed,
                        data.model_dump(exclude={"batching", "padding", *data.unused})]
    if data.dataset == SECTIONS_DATASET:
        facts.append(debian_sections.build(cache, data.held_out or HELD_OUT).name)
    return facts + digests(job)


def prepare(resolved: ResolvedJob, cache: Path) -> Path:
    """Read, split and tokenise into a folder of `cache` (one rank does this); done before, it is reused."""
    job = resolved.job
    facts = json.dumps(_facts(job, cache), sort_keys=True)
    folder = cache / ("tokenised-" + hashlib.sha256(facts.encode()).hexdigest()[:16])
    if folder.is_dir() and seal.is_intact(folder):
        return folder
    for stale in cache.glob("*tokenised-*"):
        shutil.rmtree(stale)
    task = tasks.of(job)
    train, held_out = raw_rows(job.data, cache, job.train.seed)
    for rows in (train, held_out):
        _check_columns(job.data, rows.features, task)
    labels: list[str] = []
    if task.label == "class":
        labels = _label_names(train, job.data.label)
        if wrong := tasks.not_closed(job, len(labels), len(train)):
            raise UserError(*wrong)
    elif task.label == "value":
        labels = [job.data.label]
    if not len(train) or not len(held_out) or (task.label == "class" and len(labels) < 2):
        classes = f"{count_text(len(labels), 'class')}, " if task.label == "class" else ""
        raise UserError(f"{job.data.dataset} has {classes}{len(train)} training and {len(held_out)} held-out rows",
                        "use data with at least one row of each kind and, for classes, at least two of them")
    model = source.local(job)
    tokenizer = load_tokenizer(model, lambda: _corpus(train, job.data, labels, task), job.data.max_length)
    check_positions(job, model, resolved.origins.file, tokenizer)

    def pieces(rows: Any, side: str) -> Iterator[Piece]:
        if task.label == "nothing":
            return _blocks(rows, job.data, tokenizer)
        if task.label == "text":
            return _samples(rows, job.data, tokenizer, side, _answers(tokenizer, job.data.max_answer_length))
        named = hasattr(rows.features[job.data.label], "names")
        return _samples(rows, job.data, tokenizer, side, lambda found, place: {
            "labels": _values(found, place) if task.label == "value" else _classes(found, labels, named, place)})

    with new_folder(folder) as temporary:
        digests = [tokens.write(temporary / name, pieces(rows, side))
                   for name, rows, side in (("train", train, "training"), ("held_out", held_out, "held-out"))]
        empty = [name for name in ("train", "held_out") if not list((temporary / name).iterdir())]
        if empty:
            side = empty[0].replace("_", "-")
            raise UserError(f"the {side} texts of {job.data.dataset} contain fewer than two tokens",
                            "name the column of texts in data.text")
        tokenizer.save_pretrained(temporary / "tokenizer")
        write_json(temporary / "data.json",
                   {"labels": labels, "digest": hashlib.sha256("".join(digests).encode()).hexdigest()[:16],
                    "max_length": job.data.max_length, "max_answer_length": job.data.max_answer_length,
                    "revisions": _revisions(model, train)})
        seal.seal(temporary)
    shutil.rmtree(cache / "arrow", ignore_errors=True)  # the raw rows are not needed again
    return folder


def _revisions(model: Model, rows: Any) -> dict[str, str]:
    """The commits of what came from the hub."""
    commit = commit_of(rows)
    return {**source.revisions(model), **({"data": commit} if commit else {})}


def _corpus(rows: Any, data: Data, labels: list[str], task: tasks.Task) -> Iterator[str]:
    """What a tokenizer from scratch learns from: the texts, those to answer with, and twice the labels, so that it
    knows their characters."""
    for first in range(0, len(rows), CHUNK):
        chunk = rows[first : first + CHUNK]
        for column in _texts(chunk, data):
            yield from column
        if task.label == "text":
            yield from (str(text) for text in chunk[data.label] if text is not None)
    yield from labels * 2


def load(folder: Path, task: tasks.Task) -> Prepared:
    """What `prepare` wrote, opened and bound to the job's `task`; nothing is read yet."""
    from transformers import AutoTokenizer

    facts = json.loads((folder / "data.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", **no_code())
    targets = task.bind(tokenizer, facts["labels"])
    train, held_out = (tokens.read(folder / side, facts["max_length"], targets, facts.get("max_answer_length", 0))
                       for side in ("train", "held_out"))
    return Prepared(train, held_out, facts["labels"], facts["digest"], tokenizer,
                    facts.get("revisions", {}))


