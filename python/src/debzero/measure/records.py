"""What a measurement leaves: one run, the host it ran on; and the one reader of such records, which checks what it
reads.

Standard library only: results are also shown on a host without the trainer's libraries, such as an Ansible controller.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Optional, TypeVar, Union, get_args, get_origin, get_type_hints

from debzero.base.errors import InputError, Problem
from debzero.base.reading import RESULTS, parse_json, read_text, why
from debzero.base.text import short

Record = TypeVar("Record")

# Kinds of failure that a new start tries again, because someone may have fixed the cause. Running out of memory or of
# time is a result.
RETRYABLE = ("refused", "failed")


@dataclass(frozen=True)
class Segment:
    """Consecutive optimizer steps after the warm-up. `samples` are those of all ranks."""

    steps: int
    samples: float
    seconds: float

    def __post_init__(self) -> None:
        if min(self.steps, self.samples, self.seconds) < 0:
            raise ValueError("steps, samples and seconds are never negative")


@dataclass(frozen=True)
class MeasuredRun:
    """What one run showed: figures where `kind` is measured, else the `reason` why there are none."""

    kind: Literal["measured", "memory", "refused", "time", "failed"] = "measured"
    reason: Optional[str] = None
    segments: tuple[Segment, ...] = ()
    memory_bytes: tuple[int, ...] = ()  # each rank's peak
    device_bytes: tuple[int, ...] = ()  # each GPU's peak, over what was in use before the run
    host_bytes: int = 0                 # likewise the host's
    wall_seconds: float = 0.0
    fell_out: bool = False              # its steps left the CUDA graphs that they were recorded in

    def __post_init__(self) -> None:
        if self.measured and not (self.memory_bytes and min(self.memory_bytes) > 0 and 0 < self._seconds < math.inf
                                  and self.samples_per_second > 0):
            raise ValueError("a measured run needs segments that took time, with samples, and each rank's memory")

    @property
    def measured(self) -> bool:
        return self.kind == "measured"

    @property
    def samples_per_second(self) -> float:
        """Over all segments; raises ZeroDivisionError where none was measured."""
        return sum(segment.samples for segment in self.segments) / self._seconds

    @property
    def steps_per_second(self) -> float:
        """Likewise, in optimizer steps."""
        return sum(segment.steps for segment in self.segments) / self._seconds

    @property
    def _seconds(self) -> float:
        return sum(segment.seconds for segment in self.segments)


@dataclass(frozen=True)
class HostFacts:
    """The hardware and the system of a measurement. Without a GPU, `gpus` is 0 and what describes one is None."""

    name: str
    device: str                      # what the ranks compute on: the GPU's or the processor's name
    gpus: int
    gpu_memory_bytes: Optional[int]  # of one GPU
    cuda: Optional[str]
    driver: Optional[str]
    processor: str
    cores: int                       # those that this process may use
    memory_bytes: int
    system: str
    kernel: str


class _Mismatch(Exception):  # noqa: N818 - becomes an InputError
    """A value that is not what its record needs."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key, self.reason = key, reason


def read_object(file: Path, fix: str) -> dict[str, Any]:
    """The JSON object in `file`. Raises an InputError that ends with `fix` where there is none."""
    try:
        values = parse_json(read_text(file, RESULTS))
    except (OSError, ValueError) as error:
        reason = why(error)
    else:
        if isinstance(values, dict):
            return values
        reason = f"must hold an object, not {_name(values)}"
    raise InputError([Problem(str(file), "file", reason, fix)])


def read_record(kind: type[Record], values: Mapping[str, Any], file: Path, fix: str) -> Record:
    """A frozen dataclass from an object of `file`. Keys that `kind` does not have are ignored. Raises an InputError
    with the key and the reason where one is missing or of another type."""
    try:
        record: Record = _read(kind, dict(values), "")
    except _Mismatch as found:
        raise InputError([Problem(str(file), found.key, found.reason, fix)]) from None
    return record


def _read(kind: Any, value: Any, key: str) -> Any:
    """`value` as a `kind`; lists become tuples, objects become dataclasses."""
    outer, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _read_fields(kind, value, key)
    if outer is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in inner):  # for Python, True is 1
            raise _Mismatch(key, f"must be one of {', '.join(map(str, inner))}, not {short(value)}")
        return value
    if outer is Union:  # Optional
        return None if value is None else _read(inner[0], value, key)
    if outer is tuple:
        items = _of_type(list, value, key)
        return tuple(_read(inner[0], item, f"{key}[{number}]") for number, item in enumerate(items))
    if outer is dict:
        return {name: _read(inner[1], item, f"{key}.{name}") for name, item in _of_type(dict, value, key).items()}
    return _of_type(kind, value, key)


def _read_fields(kind: Any, value: Any, key: str) -> Any:
    hints, given, path = get_type_hints(kind), _of_type(dict, value, key or "file"), f"{key}." if key else ""
    found = {}
    for field in fields(kind):
        if field.name in given:
            found[field.name] = _read(hints[field.name], given[field.name], path + field.name)
        elif field.default is MISSING:
            raise _Mismatch(path + field.name, "is missing")
    try:
        return kind(**found)
    except ValueError as error:
        raise _Mismatch(key or "file", str(error)) from None


LARGEST = 10**18  # of what is counted or measured here; also no infinity and no NaN


def _of_type(kind: Any, value: Any, key: str) -> Any:
    """`value`, which must be of exactly this type: a bool is no number here, but a whole number is a float."""
    if type(value) in (int, float) and not abs(value) < LARGEST:
        raise _Mismatch(key, f"must be a number under {LARGEST:.0e}")
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    raise _Mismatch(key, f"must be {NAMES[kind]}, not {_name(value)}")


NAMES: dict[Any, str] = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list",
                         dict: "an object", type(None): "null"}


def _name(value: object) -> str:
    return NAMES.get(type(value), "another kind of value")
