"""The texts of a data set on the disk, while its samples are made: what they need in memory does not grow with it."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Optional

import numpy as np


class Chunk(NamedTuple):
    """Some rows: where they begin among those that were asked for, and each column's texts. A missing one is empty."""

    first: int
    columns: list[list[str]]


class Store:
    """Filled by `add` within a `with` block, and read after it."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        import pyarrow

        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.columns = path, columns
        self._writer = pyarrow.ipc.new_file(str(path), pyarrow.schema([(name, pyarrow.string()) for name in columns]))

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self._writer.close()

    def add(self, piece: Any) -> None:
        """pyarrow.RecordBatch with these columns among others."""
        self._writer.write_batch(piece.select(self.columns))


class Texts:
    """Some of a store's rows. `rows`: int64[n], their numbers in the data set, ascending."""

    def __init__(self, store: Store, rows: np.ndarray) -> None:
        self.store, self.rows = store, rows

    def __len__(self) -> int:
        return len(self.rows)

    def chunks(self, size: int) -> Iterator[Chunk]:
        """At most `size` rows at a time."""
        import pyarrow

        with pyarrow.memory_map(str(self.store.path)) as file:
            pieces = pyarrow.ipc.open_file(file)
            begin = done = 0
            for number in range(pieces.num_record_batches):
                piece = pieces.get_batch(number)
                mine = self.rows[slice(*np.searchsorted(self.rows, (begin, begin + len(piece))))] - begin
                begin += len(piece)
                for first in range(0, len(mine), size):
                    some = piece.take(pyarrow.array(mine[first : first + size]))
                    yield Chunk(done, [[text or "" for text in column.to_pylist()] for column in some.columns])
                    done += len(some)
