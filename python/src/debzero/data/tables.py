"""Rows that come with types: a parquet file, or a data set of the hub."""
from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

from debzero.base.reading import open_regular
from debzero.data.faults import DataError, broken, held
from debzero.data.forms import refuse_others
from debzero.data.reading import ROWS


class ParquetFile:
    names: Optional[list[str]] = None

    def __init__(self, path: Path, label: str) -> None:
        import pyarrow.parquet

        self.path, self.name, self._done = path, path.name, 0.0
        with open_regular(path) as file:
            refuse_others(path, file.read(64))
            file.seek(0)
            try:
                content = pyarrow.parquet.ParquetFile(file)
                schema, self.rows = content.schema_arrow, content.metadata.num_rows
            except Exception as error:  # pyarrow raises errors of its own, a ValueError, an OSError, ...
                raise _no_parquet(path, error) from None
        self.columns = list(schema.names)
        double = next((name for name in self.columns if self.columns.count(name) > 1), None)
        if not self.columns or double is not None:  # without columns pyarrow would divide by zero
            raise broken(f"{path.name} has no columns" if double is None else
                         f"{path.name} has the column {double!r} twice", "write it with one column for each name")
        self.names = _class_names(schema.metadata or {}, label)

    def share(self) -> float:
        return self._done

    def pieces(self, wanted: Mapping[str, str]) -> Iterator[Any]:
        import pyarrow.parquet

        with open_regular(self.path) as file:
            done = 0
            try:
                content = pyarrow.parquet.ParquetFile(file)
                for name in wanted:
                    check_type(content.schema_arrow.field(name).type, wanted[name], self.name, name)
                batches = content.iter_batches(ROWS, columns=list(wanted))
                while (batch := next(batches, None)) is not None:
                    texts = as_texts(batch, [*wanted], self.names if "label" in wanted.values() else None, wanted)
                    self._refuse_no_text(texts, done)
                    done += len(batch)
                    self._done = done / max(1, self.rows)
                    yield texts
            except (OSError, MemoryError) as error:
                if isinstance(error, MemoryError) or error.errno:  # of the disk, not of the content
                    raise
                raise _no_parquet(self.path, error) from None
            except (pyarrow.ArrowException, ValueError, TypeError, RuntimeError, LookupError) as error:
                raise _no_parquet(self.path, error) from None

    def _refuse_no_text(self, texts: Any, before: int) -> None:
        """A column of strings may hold any bytes."""
        import pyarrow

        for name, values in zip(texts.schema.names, texts.columns):
            try:
                values.validate(full=True)
            except pyarrow.ArrowInvalid:
                raw = values.cast(pyarrow.binary()).to_pylist()
                row = next(row for row, cell in enumerate(raw) if (cell or b"").decode("utf-8", "ignore").encode()
                           != (cell or b""))
                raise broken(f"{self.name} row {before + row + 1}: the {name} is no UTF-8 text",
                             "write the file again with texts in UTF-8") from None

    def places(self, rows: Collection[int]) -> dict[int, str]:
        return {row: f"row {row + 1}" for row in rows}


class HubRows:
    """One split of a data set of the hub, as `datasets` has it in its cache."""

    def __init__(self, rows: Any, name: str, label: str) -> None:
        self.rows, self.name, self.columns, self._done = rows, name, list(rows.column_names), 0
        self.names = list(getattr(rows.features.get(label), "names", None) or []) or None

    def share(self) -> float:
        return self._done / max(1, len(self.rows))

    def pieces(self, wanted: Mapping[str, str]) -> Iterator[Any]:
        rows = self.rows.select_columns([*wanted]).with_format("arrow")
        for first in range(0, len(rows), ROWS):
            table = rows[first : first + ROWS]
            for name in wanted:
                check_type(table.schema.field(name).type, wanted[name], self.name, name)
            self._done = first
            yield from (as_texts(batch, [*wanted], self.names, wanted) for batch in table.combine_chunks().to_batches())

    def places(self, rows: Collection[int]) -> dict[int, str]:
        return {row: f"row {row + 1}" for row in rows}


def check_type(kind: Any, key: str, file: str, column: str) -> None:
    """Raises a DataError for a column of lists, mappings, bytes and whatever else has no text of its own."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if not any(fits(kind) for fits in (types.is_string, types.is_large_string, types.is_integer, types.is_floating,
                                       types.is_boolean, types.is_null)):
        what = "lists" if types.is_nested(kind) and "list" in str(kind) else "mappings" if types.is_nested(kind) else (
            "bytes" if "binary" in str(kind) else f"values of the type {kind}")
        raise held(key, file, "", column, what)


def as_texts(batch: Any, columns: list[str], names: Optional[list[str]], keys: Mapping[str, str]) -> Any:
    """The columns as strings; numbers as Python writes them, NaN as a missing value. Where the label's classes have
    `names`, their numbers become those; a number beyond them (-1 means unknown) is a missing value."""
    import pyarrow

    made = []
    for name in columns:
        values = batch.column(batch.schema.names.index(name))
        kind = values.type
        if pyarrow.types.is_dictionary(kind):
            values, kind = values.dictionary_decode(), kind.value_type
        if names and keys[name] == "label" and pyarrow.types.is_integer(kind):
            values = pyarrow.array([names[i] if i is not None and 0 <= i < len(names) else None
                                    for i in values.to_pylist()], pyarrow.string())
        elif pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind):
            values = pyarrow.array([None if value is None or value != value else str(value)
                                    for value in values.to_pylist()], pyarrow.string())
        else:
            values = values.cast(pyarrow.string())
        made.append(values)
    return pyarrow.RecordBatch.from_arrays(made, names=columns)


def _class_names(metadata: dict[bytes, bytes], label: str) -> Optional[list[str]]:
    """The names of the label's classes, where `datasets` wrote the file and its label numbers them."""
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][label]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return names if isinstance(names, list) and names and all(isinstance(name, str) for name in names) else None


def _no_parquet(path: Path, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return broken(f"{path.name} is no parquet file that can be read: {reason}", "write it again")
