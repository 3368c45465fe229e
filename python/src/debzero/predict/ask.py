"""`debzero predict`: from the command line to the answers."""
from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any, Callable, Optional

from debzero import __version__
from debzero.base.errors import InputError, Problem, UserError
from debzero.base.text import count_text, duration_text, printable, rate_text, short
from debzero.predict import exported, output, rows, trained
from debzero.predict.answers import Answers, ends
from debzero.predict.engine import Choice, Writing
from debzero.predict.engines import ENGINES, EXPORTED
from debzero.predict.output import OutputFile, Row
from debzero.predict.rows import File, Piece
from debzero.predict.trained import Trained

ROWS = 1024         # answered together, sorted by length; a kill loses the answers to as many
ROWS_WRITTEN = 256  # the same of a model that writes, which takes longer for each
OF_WRITING = ("beams", "sample", "stop", "max_tokens")
OF_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "seed": None}  # and what they are by default


def predict(options: Namespace) -> int:
    """The exit code."""
    check(options)
    session = Session(options, trained.find(options.name, options.output))
    if options.input:
        file = File(options.input, session.texts, options.keep)
        return session.of_file(file, file.count())
    given = rows.of_arguments(options.texts, len(session.texts)) if options.texts else None
    session.load()
    if given is not None:
        session.show(given, 0)
        return 0
    if os.isatty(0):
        print("One text per line; Ctrl-D ends it.", file=sys.stderr, flush=True)
    first = 0
    for piece in rows.of_lines(0, len(session.texts), session.most):
        session.show(piece, first)
        first += piece.rows
    return 0


class Session:
    """A trained model that answers rows of `texts`, its columns, as `options` say."""

    def __init__(self, options: Namespace, folder: Path) -> None:
        """Raises an InputError where the model cannot be used so. Its weights are not loaded yet."""
        self.options = options
        if options.engine in EXPORTED:
            self.model, record = exported.load(folder, options.engine, options.precision)
            options.precision = record.precision
        else:
            self.model = trained.load(folder)
        self.texts, self.how = _columns(options, self.model), _writing(options, self.model)
        self.most = ROWS_WRITTEN if self.model.writes else ROWS
        self.names = output.named([*options.keep, *self.texts])

    def load(self) -> Session:
        options = self.options
        self.engine = ENGINES[options.engine](self.model, Choice(options.device, options.precision))
        self.answers = Answers(self.model, self.engine, self.how, options.top)
        return self

    def rows(self, piece: Piece, first: int, done: Callable[[int], None] = lambda rows: None) -> list[Row]:
        """The rows with their answers; `first`: the number of the first one; `done` hears of each batch's rows."""
        answers = self.answers.of(piece.texts, first, done)
        return [{**dict(zip(self.names, cells)), **answer}
                for cells, answer in zip(zip(*piece.copied, *piece.texts), answers)]

    def show(self, piece: Piece, first: int, progress: Optional[Progress] = None) -> None:
        """The rows on standard output."""
        as_line = output.as_json if self.options.json else output.as_text
        for row in self.rows(piece, first, *([progress.add] if progress else [])):
            print(as_line(row))
        sys.stdout.flush()

    def of_file(self, file: File, total: int) -> int:
        """The exit code."""
        self.load()
        if self.options.output is None:
            progress, first = Progress(total, 0, not sys.stdout.isatty()), 0
            for piece in file.pieces(self.most):
                self.show(piece, first, progress)
                first += piece.rows
            return 0
        made = self.output(file, self.options.output)
        if said := made.begin(total):
            print(printable(f"{made.path}: {said}"), file=sys.stderr, flush=True)
        progress = Progress(total, made.rows, True)
        try:
            for piece in file.pieces(self.most, made.rows):
                made.add(self.rows(piece, made.rows, progress.add))
        except KeyboardInterrupt:
            print(printable(f"\nstopped after row {made.rows}: the same command continues there"), file=sys.stderr)
            raise
        if made.rows != total:
            raise UserError(f"{file.path} was changed while it was read: {total} rows became {made.rows}",
                            "start again when it is complete")
        made.finish()
        print(printable(f"written: {made.path}  {count_text(total, 'row')}{progress.rate()}"))
        return 0

    def output(self, file: File, path: Path) -> OutputFile:
        """What the answers to a file are written to."""
        table = [*self.names, "answer", *(["probability"] if self.model.labels else [])]
        options = {name: value for name, value in vars(self.options).items() if name not in ("run", "name", "output")}
        facts = {"options": options, "texts": self.texts, "input": trained.state(file.path.absolute()),
                 "version": __version__, "engine": [self.engine.device, self.engine.precision],
                 "model": trained.states(self.model.folder)}
        return OutputFile(path, table, self.model.task == "regression", facts)


class Progress:
    """How far a file is, on standard error: a changing line on a terminal, else a line now and then."""

    def __init__(self, total: int, done: int, speaks: bool) -> None:
        self.total, self.done, self.before, self.speaks = total, done, done, speaks
        self.live = sys.stderr.isatty()
        self.started = self.said = time.monotonic()

    def add(self, rows: int) -> None:
        self.done += rows
        now = time.monotonic()
        if self.speaks and (now - self.said > (0.5 if self.live else 30) or self.live and self.done == self.total):
            self.said = now
            text = (f"{self.done}/{self.total} rows  {self.done / self.total:.0%}{self.rate()}  "
                    f"ETA {duration_text((self.total - self.done) / self._rows_per_second())}")
            print(f"\r\033[K{text}" if self.live else text, end="" if self.live and self.done < self.total else "\n",
                  file=sys.stderr, flush=True)

    def _rows_per_second(self) -> float:
        return (self.done - self.before) / max(time.monotonic() - self.started, 1e-9)

    def rate(self) -> str:
        return f"  {rate_text(self._rows_per_second())} rows/s" if self.done > self.before else ""


def _wrong(key: str, reason: str, fix: str) -> InputError:
    return InputError([Problem("the command line", key, reason, fix)])


def check(options: Namespace) -> None:
    """Raises an InputError for options that contradict each other."""
    for path in (options.input, options.output):
        if options.texts and path is not None:
            raise _wrong("TEXT", "there are texts as arguments, and a file", "give either")
        if options.spool is not None and (options.texts or path is not None or options.json):
            raise _wrong("--spool", "takes the files that are put into a folder, and their format is that of the "
                         "answers", "remove the texts, --input, --output and --json")
    if options.output is not None:
        if options.input is None:
            raise _wrong("--output", "belongs to --input", "name the file of texts with --input, or write standard "
                         "output to a file: debzero predict ... > FILE")
        if options.json:
            raise _wrong("--json", "is about standard output", "name the output .jsonl for JSON")
        if options.output.suffix not in output.FORMATS:
            raise _wrong("--output", f"{options.output} is neither .csv nor .jsonl nor .parquet", "name it so")
        if options.output.exists() and options.input.exists() and options.output.samefile(options.input):
            raise _wrong("--output", "is the input itself", "name another file")
    if options.keep and options.input is None and options.spool is None:
        raise _wrong("--keep", "copies columns of the file that --input names, and there is none", "remove it")
    if options.sample and options.beams:
        raise _wrong("--sample", "draws each token at random, and --beams looks for the likeliest text", "give either")
    given = [name for name in OF_SAMPLING if getattr(options, name) is not None]
    if given and not options.sample:
        raise _wrong(_option(given[0]), "is about drawing tokens at random", "add --sample, or remove it")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _columns(options: Namespace, model: Trained) -> list[str]:
    """The names of the columns with the model's texts."""
    known = model.inputs.text
    texts = options.text or known
    if model.by_debzero and len(texts) != len(known):
        raise _wrong("--text", f"{count_text(len(texts), 'column')} cannot take the place of the model's, "
                     f"{' and '.join(known)}", f"name {len(known)}, in the same order")
    if len(texts) > (1 if model.continues else 2):
        raise _wrong("--text", f"{count_text(len(texts), 'column')} are more than the model takes", "name fewer")
    both = next((name for name in texts if name in options.keep), None)
    if both is not None:
        raise _wrong("--keep", f"{both} is a column of texts, which the output has already", "remove it there")
    return texts


def _writing(options: Namespace, model: Trained) -> Writing:
    """Raises an InputError for what the model cannot do."""
    given = [name for name in OF_WRITING if getattr(options, name)]
    if given and not model.writes:
        raise _wrong(_option(given[0]), f"is for models that write texts, and this one's task is {model.task}",
                     "remove it")
    if options.top and not (model.labels or model.task == "classification"):
        raise _wrong("--top", f"is for models of classes, and this one's task is {model.task}", "remove it")
    longest = getattr(model.config, "max_decoder_position_embeddings", None) or model.positions
    if longest and model.continues:
        longest -= 1
    limit = options.max_tokens or min(model.limit, longest or model.limit)
    if longest and limit > longest:
        raise _wrong("--max-tokens", f"{limit} tokens are more than the model has positions for",
                     f"use at most {longest}")
    drawn: dict[str, Any] = {name: default if getattr(options, name) is None else getattr(options, name)
                             for name, default in OF_SAMPLING.items()}
    stops = tuple(_token(text, model.tokenizer) for text in options.stop)
    return Writing(limit, (*ends(model), *stops), model.tokenizer.pad_token_id, options.beams or 1, options.sample,
                   **drawn)


def _token(text: str, tokenizer: Any) -> int:
    """The number of the one token that `text` is. Raises an InputError where it is none."""
    known: Optional[int] = tokenizer.get_vocab().get(text)
    if known is not None:
        return known
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise _wrong("--stop", f"{short(text)} is no token of the model, but {count_text(len(ids), 'token')}: "
                     f"{' '.join(map(short, tokenizer.convert_ids_to_tokens(ids)))[:80]}", "give one that is")
    return int(ids[0])
