"""The texts of a data set on the disk, while its samples are made: what they need in memory does not grow with it.

Each column has two files: its texts end to end as UTF-8, and how many bytes each has (int32).
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Optional

import numpy as np


class Chunk(NamedTuple):
    """Some rows: where they begin among those that were asked for, and each column's texts. A missing one is empty."""

    first: int
    columns: list[list[str]]


class Store:
    """Filled by `add` within a `with` block, and read after it."""

    def __init__(self, folder: Path, columns: list[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.columns = columns
        self.paths = [(folder / f"{number}.utf8", folder / f"{number}.int32") for number in range(len(columns))]
        self._stack = ExitStack()

    def __enter__(self) -> Store:
        self._files = [(self._opened(texts), self._opened(lengths)) for texts, lengths in self.paths]
        return self

    def _opened(self, path: Path) -> BinaryIO:
        return self._stack.enter_context(path.open("wb"))

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self._stack.close()

    def add(self, piece: Any) -> None:
        """pyarrow.RecordBatch with these columns among others."""
        for name, (texts, lengths) in zip(self.columns, self._files):
            encoded = [(text or "").encode() for text in piece.column(piece.schema.names.index(name)).to_pylist()]
            texts.write(b"".join(encoded))
            lengths.write(np.fromiter(map(len, encoded), np.int32, len(encoded)).data)


class Texts:
    """Some of a store's rows. `rows`: int64[n], their numbers in the data set, ascending."""

    def __init__(self, store: Store, rows: np.ndarray) -> None:
        self.store, self.rows = store, rows

    def __len__(self) -> int:
        return len(self.rows)

    def chunks(self, size: int) -> Iterator[Chunk]:
        """At most `size` rows at a time."""
        with ExitStack() as stack:
            files = [stack.enter_context(open(texts, "rb")) for texts, _ in self.store.paths]
            ends = [np.cumsum(np.fromfile(lengths, np.int32), dtype=np.int64) for _, lengths in self.store.paths]
            for first in range(0, len(self.rows), size):
                rows = self.rows[first : first + size]
                yield Chunk(first, [_texts(file, end, rows) for file, end in zip(files, ends)])


def _texts(file: Any, ends: np.ndarray, rows: np.ndarray) -> list[str]:
    found = []
    for row in rows.tolist():
        begin = int(ends[row - 1]) if row else 0
        file.seek(begin)
        found.append(file.read(int(ends[row]) - begin).decode())
    return found
