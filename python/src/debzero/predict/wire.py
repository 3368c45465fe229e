"""What debzero and the process of TensorRT say to each other over pipes: a line of JSON, then the bytes of arrays.

No pickle, so neither side can make the other run anything. Both import this file, under different Pythons: it uses
nothing but the standard library and numpy.
"""
from __future__ import annotations

import json
from typing import IO, Any, Optional

import numpy as np

LONGEST = 2**24                                    # bytes of a line
TYPES = ("<i8", "<i4", "<f4", "<f2", "|b1", "|i1", "|u1")  # of arrays: numbers, and nothing that holds objects


def send(stream: IO[bytes], message: dict[str, Any], arrays: Optional[dict[str, np.ndarray]] = None) -> None:
    """Write a message with its arrays. Raises ValueError for one of another type, and OSError where nobody reads."""
    laid_out = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in (arrays or {}).items()}
    facts = [[name, array.dtype.str, array.shape] for name, array in laid_out.items()]
    if wrong := [kind for _, kind, _ in facts if kind not in TYPES]:
        raise ValueError(f"arrays of type {wrong[0]} are not sent")
    stream.write(json.dumps({**message, "arrays": facts}).encode() + b"\n")
    for array in laid_out.values():
        stream.write(array.data.cast("B") if array.size else b"")
    stream.flush()


def receive(stream: IO[bytes]) -> Optional[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """The next message with its arrays; None where the other side has closed. Raises ValueError for anything else, and
    EOFError for half a message."""
    line = stream.readline(LONGEST)
    if not line:
        return None
    if not line.endswith(b"\n"):
        raise EOFError("half a message")
    message = json.loads(line)
    arrays = {}
    for name, kind, shape in message.pop("arrays"):
        if kind not in TYPES or not all(type(length) is int and length >= 0 for length in shape):
            raise ValueError(f"no array: {kind} {shape}")
        array = np.empty(shape, kind)
        if array.size:
            _fill(stream, array.data.cast("B"))
        arrays[name] = array
    return message, arrays


def _fill(stream: IO[bytes], room: memoryview) -> None:
    done = 0
    while done < len(room):
        count = stream.readinto(room[done:])  # type: ignore[attr-defined]  # of buffered readers
        if not count:
            raise EOFError("half an array")
        done += count
