"""Where the answers go: rows as text, JSON or CSV, and a file that is written once whatever kills the process."""
from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Optional, Union

from debzero.base.errors import InputError, Problem, UserError
from debzero.base.failures import disk_full
from debzero.base.files import Heartbeat, nearest, read_json, remove, replace, write_json
from debzero.base.own_files import ForeignFileError, require_own
from debzero.base.text import printable
from debzero.run import lock

Row = dict[str, Any]
FORMATS = (".csv", ".jsonl", ".parquet")
LISTED = 3     # classes in a line of text
GROUP = 2**14  # rows of a parquet file that are in memory at a time
ANSWERS = {"answer", "probability", "probabilities"}


def named(columns: list[str]) -> list[str]:
    """Names for copied columns: different ones, as `columns` are, and none of the answer's."""
    made = [name for name in columns if name not in ANSWERS]
    for place, name in enumerate(columns):
        if name in ANSWERS:
            while name in ANSWERS or name in made:
                name = f"input_{name}"
            made.insert(place, name)
    return made


def as_text(row: Row) -> str:
    """A line for people."""
    if "probabilities" not in row:
        return printable(str(row["answer"]))
    return "  ".join(f"{printable(name)} {share:.3f}" for name, share in list(row["probabilities"].items())[:LISTED])


def as_json(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False)


def as_csv(values: list[Any]) -> str:
    line = io.StringIO()
    # A writer puts quotation marks around the characters of its own line end alone, so "\r" has to be one of them.
    csv.writer(line, lineterminator="\r\n").writerow(["" if value is None else value for value in values])
    return line.getvalue()[:-2] + "\n"


class OutputFile:
    """A file of answers that appears at its name when it is complete.

    Until then its rows are in a hidden folder beside it: `rows`, to which is only appended, and `journal.json`, which
    says after each piece how many rows and bytes of it count. What a kill leaves behind these bytes is cut off, so the
    next start continues behind the last row that counts. `columns`: of a table; `numbers`: whether the answers are
    some; `facts`: what the rows depend on. With others it begins anew.
    """

    def __init__(self, path: Path, columns: list[str], numbers: bool, facts: dict[str, Any]) -> None:
        self.path, self.columns, self.numbers, self.format = path, columns, numbers, path.suffix
        self.work = path.with_name(f".{path.name}.predict")
        self.part, self.journal = self.work / "rows", self.work / "journal.json"
        self.facts = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
        self.rows = 0
        self._lock: Optional[int] = None
        self._file: Optional[BinaryIO] = None

    def close(self) -> None:
        """Let others write it. What has been added stays."""
        if self._file is not None:
            with suppress(OSError):  # of a full disk: what add() has not noted does not count
                self._file.close()
        if self._lock is not None:
            os.close(self._lock)
        self._file = self._lock = None

    def begin(self, total: int) -> str:
        """Hold the file and find out how many of its `total` rows there are (`rows`); what to say about that. Raises
        an InputError where no file can be written or another process writes it."""
        try:
            self._hold()
            return self._resume(total)
        except (OSError, ForeignFileError) as error:
            raise self._cannot(error) from None

    def _hold(self) -> None:
        if self.path.is_dir():
            raise IsADirectoryError(None, "is a folder", str(self.path))
        while True:
            with suppress(FileExistsError):
                self.work.mkdir(mode=0o700)
            require_own(os.lstat(self.work), self.work, folders=True)
            self._lock = lock.open_own(self.work / "lock")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                holder = lock.holder(self.work / "lock")
                raise InputError([Problem(str(self.path), "--output", f"process {holder or 'unknown'} is writing it",
                                          "wait for it, or name another file")]) from None
            if os.fstat(self._lock).st_nlink:  # else its holder has just finished and removed it
                return
            self.close()

    def _resume(self, total: int) -> str:
        known = read_json(self.journal, own=True)
        said = ""
        if known and known.get("facts") != [self.facts, total]:
            known, said = {}, "the input, the model or the options have changed: starting anew"
        rows, size = known.get("rows", 0), known.get("bytes", 0)
        if known and rows == total and not self.part.exists() and self._size(self.path) == size:
            self.rows = total
            return "complete already"
        if self._size(self.part) < size:
            rows = size = 0
        self._file = os.fdopen(os.open(self.part, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "wb")
        self._file.truncate(size)
        self._file.seek(size)
        self.rows, self.total = rows, total
        if not size and self.format == ".csv":
            self._file.write(as_csv(self.columns).encode())
        return said or (f"continuing after row {rows}" if rows else "")

    @staticmethod
    def _size(path: Path) -> int:
        try:
            return path.stat().st_size
        except OSError:
            return 0

    def add(self, rows: list[Row]) -> None:
        """Append rows, durably."""
        assert self._file is not None, "it has begun"
        text = "".join(as_csv([row.get(name) for name in self.columns]) if self.format == ".csv" else
                       f"{as_json(row)}\n" for row in rows)
        try:
            self._file.write(text.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self._note(self.rows + len(rows), self._file.tell())
        except OSError as error:
            raise self._cannot(error) from None
        self.rows += len(rows)

    def _note(self, rows: int, size: int) -> None:
        write_json(self.journal, {"facts": [self.facts, self.total], "rows": rows, "bytes": size})

    def finish(self, alive: Heartbeat = lambda: None) -> None:
        """Give the complete file its name. `alive` is called as rows are written once more, as parquet."""
        try:
            if self._file is not None:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._note(self.rows, self._file.tell())
                replace(self._as_parquet(alive) if self.format == ".parquet" else self.part, self.path)
            remove(self.work)
        except OSError as error:
            raise self._cannot(error) from None

    def _as_parquet(self, alive: Heartbeat) -> Path:
        """The rows, which are JSON until all are there, as parquet."""
        import pyarrow
        from pyarrow import parquet

        number = pyarrow.float64()
        kinds = {"probability": number, "answer": number if self.numbers else pyarrow.string()}
        schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in self.columns])
        made = self.work / "parquet"
        with open(self.part, encoding="utf-8") as lines, open(made, "wb") as file:
            with parquet.ParquetWriter(file, schema) as writer:
                while some := list(map(json.loads, islice(lines, GROUP))):
                    writer.write_batch(pyarrow.RecordBatch.from_arrays(
                        [pyarrow.array([row[name] for row in some], kind.type) for name, kind in
                         zip(self.columns, schema)], schema=schema))
                    alive()
            file.flush()
            os.fsync(file.fileno())
        return made

    def _cannot(self, error: Exception) -> Union[UserError, InputError]:
        if isinstance(error, OSError) and (later := disk_full(error, str(nearest(self.path)))):
            return later
        reason = f"cannot be written: {getattr(error, 'strerror', None) or error}"
        return InputError([Problem(str(self.path), "--output", reason,
                                   "name a file in a folder that this user may write to")])
