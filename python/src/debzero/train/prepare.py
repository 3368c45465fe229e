"""From the job's `data:` to tokenised training and held-out samples on disk, which all ranks then open."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import Any, Callable

import numpy as np

from debzero.base.errors import InputError, Problem, as_text
from debzero.base.files import new_folder, remove, write_json
from debzero.data import dataset, debian_sections, seal, tokens
from debzero.data.dataset import DataSet, Side
from debzero.data.faults import DataError, Fault
from debzero.data.lengths import joined, length_facts, uncut
from debzero.data.sources import HELD_OUT, parts
from debzero.data.store import Store, Texts
from debzero.data.survey import Wanted
from debzero.data.tokens import Piece, Prepared
from debzero.job.contents import digests
from debzero.job.schema import SECTIONS_DATASET, Data, Job
from debzero.model import source, tasks
from debzero.model.folder import no_code
from debzero.model.opened import has_new_head, opened_problems
from debzero.model.tokenizer import end_token, highest, load_tokenizer
from debzero.model.tokens import class_token, refuse_ends
from debzero.resolve.resolve import ResolvedJob

CHUNK = 2048    # rows tokenised at a time: what a set needs in memory does not grow with it
LAYOUT = 3      # of the tokenised folders; with another number all are written anew


def _answers(tokenizer: Any, limit: int) -> Callable[[list[str]], Piece]:
    """Takes the targets of some rows, one call after the other, to the tokens that the model is to write."""
    kind, written = tokens.smallest(highest(tokenizer)), 0
    end = end_token(tokenizer)

    def pieces(targets: list[str]) -> Piece:
        nonlocal written
        encoded = tokenizer(text_target=targets, truncation=True, max_length=limit,
                            return_attention_mask=False)["input_ids"]
        # An answer ends where the model writes the end: a tokenizer that marks none would have it write for ever.
        ids = [sample if end in sample or end is None else [*sample[: limit - 1], end] for sample in encoded]
        lengths = np.fromiter(map(len, ids), np.int32, len(ids))
        ends = written + np.cumsum(lengths, dtype=np.int64)
        written = int(ends[-1])
        return {"answer_ids": np.fromiter(chain.from_iterable(ids), kind), "answer_offsets": ends - lengths,
                "answer_lengths": lengths}

    return pieces


def _samples(side: Side, texts: Texts, data: Data, tokenizer: Any, lengths: list[np.ndarray]) -> Iterator[Piece]:
    """One sample a row, cut off at data.max_length. `lengths` gets what the rows have uncut, in tokens."""
    kind, start = tokens.smallest(highest(tokenizer)), 0
    # GPT-2's tokenizer turns an empty text into no token, and a sample needs at least one.
    blank = tokenizer(" ")["input_ids"] or [tokenizer.pad_token_id]
    answers = _answers(tokenizer, data.max_answer_length)
    for chunk in texts.chunks(CHUNK):
        columns = chunk.columns[: len(data.text)]
        encoded = tokenizer(*joined(columns, data), truncation=True, max_length=data.max_length,
                            return_attention_mask=False)
        ids = [sample or blank for sample in encoded["input_ids"]]
        cut = np.fromiter(map(len, ids), np.int32, len(ids))
        lengths.append(uncut(tokenizer, columns, data, cut))
        ends = start + np.cumsum(cut, dtype=np.int64)
        piece = {"ids": np.fromiter(chain.from_iterable(ids), kind), "offsets": ends - cut, "lengths": cut}
        if data.answers == "text":
            piece.update(answers(chunk.columns[-1]))
        else:
            piece["labels"] = side.labels[chunk.first : chunk.first + len(ids)]
        if "token_type_ids" in encoded:
            piece["types"] = np.fromiter(chain.from_iterable(encoded["token_type_ids"]), np.uint8)
        start = int(ends[-1])
        yield piece


def _blocks(texts: Texts, data: Data, tokenizer: Any) -> Iterator[Piece]:
    """The texts one after the other, each ended by a token of its own, cut into blocks of data.max_length tokens.

    What does not fill the last block is left out, unless it is all there is.
    """
    kind, size = tokens.smallest(highest(tokenizer)), data.max_length
    end = end_token(tokenizer)
    rest, blocks = np.empty(0, kind), 0
    for chunk in texts.chunks(CHUNK):
        some = [text for text in chunk.columns[0] if text]
        encoded = tokenizer(some, add_special_tokens=False, return_attention_mask=False)["input_ids"] if some else []
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
    """Read, split and tokenise into a folder of `cache` (one rank does this); done before, it is reused. Raises an
    InputError for rows that cannot be trained on."""
    job = resolved.job
    facts = json.dumps(_facts(job, cache), sort_keys=True)
    folder = cache / ("tokenised-" + hashlib.sha256(facts.encode()).hexdigest()[:16])
    if folder.is_dir() and seal.is_intact(folder):
        return folder
    for stale in cache.glob("*tokenised-*"):
        remove(stale)
    raw = cache / "raw"  # the texts, which are not needed again
    remove(raw)
    try:
        read, sides = _read(job, cache, raw)
    except DataError as error:
        raise InputError([fault.problem(resolved.origins.file) for fault in error.faults]) from None
    model = source.local(job)
    if isinstance(model, str):
        _check_model(job, resolved.origins.file, Path(model), read.labels)
    tokenizer = load_tokenizer(model, lambda: _corpus(sides[0][1], job.data, read.labels), job.data.max_length,
                               continues=job.task == "causal-lm")
    end = class_token(model, tokenizer) if has_new_head(job) else None
    lengths: list[np.ndarray] = []

    def pieces(side: Side, texts: Texts) -> Iterator[Piece]:
        if read.wanted.kind == "nothing":
            yield from _blocks(texts, job.data, tokenizer)
            return
        for piece in _samples(side, texts, job.data, tokenizer, lengths):
            if end is not None:
                refuse_ends(tokenizer, end, piece["ids"], piece["lengths"])
            yield piece

    with new_folder(folder) as temporary:
        digests = [tokens.write(temporary / name, pieces(side, texts))
                   for name, (side, texts) in zip(("train", "held_out"), sides)]
        empty = [name for name in ("train", "held_out") if not list((temporary / name).iterdir())]
        if empty:
            raise InputError([Problem(
                resolved.origins.file, "data.text", f"the {empty[0].replace('_', '-')} texts of {job.data.dataset} "
                "contain fewer than two tokens", "name the column of texts in data.text")])
        tokenizer.save_pretrained(temporary / "tokenizer")
        commit = read.parts.commit
        write_json(temporary / "data.json",
                   {"labels": read.labels, "digest": hashlib.sha256("".join(digests).encode()).hexdigest()[:16],
                    "max_length": job.data.max_length, "max_answer_length": job.data.max_answer_length,
                    "facts": {**read.facts(), **length_facts(lengths, job.data)},
                    "revisions": {**source.revisions(model), **({"data": commit} if commit else {})}})
        seal.seal(temporary)
    with suppress(OSError):  # the next time, then
        remove(raw)
    return folder


def _check_model(job: Job, file: str, folder: Path, labels: list[str]) -> None:
    """What `check` cannot know of a model of the hub, or without all rows. Raises an InputError. Of a model that was
    here before, `check` has given the warnings."""
    found = opened_problems(job, file, folder, labels)
    if any(problem.severity == "error" for problem in found):
        raise InputError(found)
    if found and str(folder) != job.model:
        print(as_text(found), flush=True)


def _read(job: Job, cache: Path, raw: Path) -> tuple[DataSet, list[tuple[Side, Texts]]]:
    """The pass over all rows, which leaves their texts in `raw`; and both sides. Raises a DataError."""
    wanted = Wanted.by(job.data, tasks.of(job).label)
    found = parts(job.data, wanted, cache)
    with ExitStack() as stack:
        columns = [*job.data.text, *([job.data.label] if wanted.kind == "text" else [])]
        stores = [stack.enter_context(Store(raw / str(number), columns)) for number in (0, 1)]
        read = dataset.read(job.data, found, wanted, job.train.seed,
                            dataset.Pass([store.add for store in stores]))
    errors = [fault for fault in read.faults() if fault.severity == "error"]
    if wrong := tasks.not_closed(job, len(read.labels), read.train.count):
        errors.insert(0, Fault("label", *wrong))
    if errors:
        raise DataError(*errors)
    store = {read.surveys[0]: stores[0], read.surveys[-1]: stores[len(read.surveys) - 1]}
    return read, [(side, Texts(store[side.survey], side.rows)) for side in (read.train, read.held_out)]


def _corpus(texts: Texts, data: Data, labels: list[str]) -> Iterator[str]:
    """What a tokenizer from scratch learns from: the texts, those to answer with, and twice the labels, so that it
    knows their characters."""
    for chunk in texts.chunks(CHUNK):
        for column in joined(chunk.columns[: len(data.text)], data):
            yield from column
        for column in chunk.columns[len(data.text) :]:
            yield from column
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
                    facts.get("revisions", {}), facts.get("facts", {}))


