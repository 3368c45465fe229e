"""Where the texts come from: arguments, standard input, or a data file of any format that debzero trains on."""
from __future__ import annotations

import os
import select
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from debzero.base.errors import InputError, Problem
from debzero.base.files import unreadable
from debzero.base.reading import NO_CHARACTER, why
from debzero.base.text import count_text, did_you_mean, printable
from debzero.data.faults import DataError
from debzero.data.forms import fix_of_name, fix_of_path
from debzero.data.reading import LONGEST_ROW, Rows
from debzero.data.sources import opened
from debzero.data.survey import Wanted
from debzero.job.local_files import FORMATS, did_you_mean_path

BLOCK = 2**16


class Piece(NamedTuple):
    """Some rows: the texts of each of the model's columns, and the values of each column that is to be copied."""

    texts: list[list[str]]
    copied: list[list[Optional[str]]]

    @property
    def rows(self) -> int:
        return len(self.texts[0])


def of_arguments(texts: Sequence[str], columns: int) -> Piece:
    """Raises an InputError where they are no whole rows."""
    if len(texts) % columns:
        raise InputError([Problem("the command line", "TEXT", f"the model takes {columns} texts at a time, and "
                                  f"{count_text(len(texts), 'text')} cannot be divided by that", "give each text's "
                                  "pair after it, each in quotation marks")])
    for text in texts:
        if NO_CHARACTER.search(text):  # bytes of an argument that are no UTF-8
            raise InputError([Problem("the command line", "TEXT", f"{ascii(text[:60])} is no UTF-8 text",
                                      "give it in UTF-8")])
    made = [list(texts[number::columns]) for number in range(columns)]
    return Piece(made, [])


def of_lines(descriptor: int, columns: int, most: int) -> Iterator[Piece]:
    """A row per line, with tabs between the columns; what has arrived is a piece of at most `most` rows. Raises an
    InputError with the line that cannot be read."""
    number = 0
    for lines in _arrived(descriptor, most):
        rows = []
        for line in lines:
            number += 1
            rows.append(_cells(line, number, columns))
        made = [list(column) for column in zip(*rows)]
        yield Piece(made, [])


def _cells(line: bytes, number: int, columns: int) -> list[str]:
    place = f"line {number}"
    try:
        text = line.rstrip(b"\n").decode().rstrip("\r")
    except UnicodeDecodeError as error:
        raise InputError([Problem("standard input", place, f"byte 0x{line[error.start]:02x} is no UTF-8 text",
                                  "convert it, for example: iconv -f WINDOWS-1252 -t UTF-8")]) from None
    if "\0" in text:
        raise InputError([Problem("standard input", place, "holds a zero byte, which is no text", "remove it")])
    if number == 1:
        text = text.removeprefix("\ufeff")  # the byte order mark of a file
    cells = text.split("\t") if columns > 1 else [text]
    if len(cells) != columns:
        raise InputError([Problem("standard input", place, f"has {count_text(len(cells), 'text')}, and the model takes "
                                  f"{columns}", "put a tab between them, and none elsewhere")])
    return cells


def _arrived(descriptor: int, most: int) -> Iterator[list[bytes]]:
    """The lines of a pipe, a terminal or a file as they come: nobody waits for an answer until a block is full."""
    rest, lines, done = b"", list[bytes](), False
    while not done:
        block = os.read(descriptor, BLOCK)
        done = not block
        *whole, rest = (rest + block).split(b"\n")
        lines += whole
        if done and rest:
            lines.append(rest)
        if len(rest) > LONGEST_ROW:
            raise InputError([Problem("standard input", "its last line", f"is longer than {LONGEST_ROW // 2**20} MiB",
                                      "give one text per line")])
        waits = not done and not select.select([descriptor], [], [], 0)[0]
        while len(lines) >= most or lines and (waits or done):
            yield lines[:most]
            del lines[:most]


class File:
    """A data file; `texts` and `copied` name its columns. Reading it again gives the same rows. Raises an InputError,
    here or while it is read, for what is wrong with it."""

    def __init__(self, path: Path, texts: list[str], copied: list[str]) -> None:
        self.path, self.texts, self.copied = path, texts, copied
        self.wanted = {**dict.fromkeys(copied, "keep"), **dict.fromkeys(texts, "text")}
        reason = unreadable(path) or ("" if path.exists() else "does not exist")
        if reason:
            raise self._wrong(reason, fix_of_path(path) or did_you_mean_path(path, model=False) or
                              "correct the path or its permissions")
        if path.is_dir() or path.suffix not in FORMATS:
            raise self._wrong("is no csv, json, jsonl or parquet file", "name one file of the folder" if path.is_dir()
                              else fix_of_name(path))

    def pieces(self, most: int, skip: int = 0) -> Iterator[Piece]:
        """Pieces of `most` rows, the last of fewer, after the first `skip` rows."""
        texts: list[list[str]] = [[] for _ in self.texts]
        copied: list[list[Optional[str]]] = [[] for _ in self.copied]
        for batch in self._batches():
            if skip >= len(batch):
                skip -= len(batch)
                continue
            batch, skip = batch.slice(skip), 0
            cells = {name: batch.column(batch.schema.names.index(name)).to_pylist() for name in self.wanted}
            for column, name in zip(texts, self.texts):
                column += [text or "" for text in cells[name]]
            for values, name in zip(copied, self.copied):
                values += cells[name]
            while len(texts[0]) >= most:
                yield Piece([column[:most] for column in texts], [column[:most] for column in copied])
                texts, copied = [column[most:] for column in texts], [column[most:] for column in copied]
        if texts[0]:
            yield Piece(texts, copied)

    def count(self) -> int:
        """The rows. All of them are read, so nothing that is wrong with the file is found hours later."""
        return sum(map(len, self._batches()))

    def _batches(self) -> Iterator[Any]:
        try:
            rows = self._opened()
            yield from rows.pieces(self.wanted)
        except DataError as error:
            keys = {"dataset": "--input", "text": "--text", "keep": "--keep"}
            raise InputError([Problem(str(self.path), keys.get(fault.key, fault.key), fault.reason, fault.fix)
                              for fault in error.faults]) from None
        except (OSError, ValueError) as error:
            raise self._wrong(why(error), "correct the file or its permissions") from None

    def _opened(self) -> Rows:
        rows = opened(self.path, Wanted([*self.wanted], None, "nothing"))
        absent = [name for name in self.wanted if name not in rows.columns] if rows.columns else []
        if absent:
            raise InputError([Problem(
                str(self.path), "--keep" if self.wanted[name] == "keep" else "--text", f"it has no column {name!r}",
                did_you_mean(name, rows.columns) if self.wanted[name] == "keep" else
                f"name its columns of texts with --text; it has {', '.join(map(printable, rows.columns[:20]))}")
                for name in absent])
        return rows

    def _wrong(self, reason: str, fix: str) -> InputError:
        return InputError([Problem(str(self.path), "--input", reason, fix)])

