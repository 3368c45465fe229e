"""The one way to read a file that somebody else may have written: regular files alone, never more than a limit, and
what they hold checked. Standard library only.

Such a file may be anything: a FIFO or a device that never ends, a link to another user's secret, terabytes of zeros, a
number with thousands of digits, brackets nested a million deep. None of them may hang or crash a command.
"""
from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Callable, Optional

# The most bytes of each kind of file; what debzero writes is far smaller.
JOB = 2**17       # pure-Python YAML takes a second or two for as much
CONFIG = 2**20    # DeepSpeed's JSON
STATE = 2**24     # of a run: status, report, a checkpoint's record
RESULTS = 2**24   # of bench and tune
LINE = 2**20      # of a file with one object per line
LINES = 2**27     # such a file

DEEPEST = 64      # levels of lists and objects in each other
DIGITS = 40       # of a whole number
LFS_POINTER = b"version https://git-lfs"  # what a file begins with in whose place Git LFS has left a pointer
NO_CHARACTER = re.compile("[\0\ud800-\udfff]")  # half a character is none
PAIRS = Optional[Callable[[list[tuple[str, Any]]], dict[str, Any]]]


class ContentError(ValueError):
    """A file that holds something else than it should. The text says what about it is wrong; `place`: a line or a key,
    where it is known."""

    def __init__(self, reason: str, place: str = "file") -> None:
        super().__init__(reason)
        self.place = place


def why(error: Exception) -> str:
    """What is wrong with a file, from what its reader raised: an OSError, or a ContentError or another ValueError."""
    if isinstance(error, ContentError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def open_regular(path: Path, own: bool = False) -> BinaryIO:
    """Open a regular file to read it. `own`: a file of debzero's own, which is never a link. Raises an OSError, or a
    ValueError where `path` is no possible name."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_NOFOLLOW if own else 0))
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(None, "it is a folder", str(path))
        if not stat.S_ISREG(mode):
            raise OSError(None, "it is no regular file", str(path))
        return open(handle, "rb")
    except BaseException:
        with suppress(OSError):
            os.close(handle)
        raise


def read_bytes(path: Path, limit: int, own: bool = False) -> bytes:
    """As open_regular. Raises a ContentError for more than `limit` bytes."""
    with open_regular(path, own) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ContentError(f"is larger than {_size(limit)}, the most that is read of such a file")
    return content


def _size(limit: int) -> str:
    return f"{limit // 2**20} MiB" if limit >= 2**20 else f"{limit // 2**10} KiB"


def read_text(path: Path, limit: int, own: bool = False) -> str:
    """As read_bytes; a ContentError where it is not UTF-8. Line breaks are \\n, as in every text file that is read."""
    return decoded(read_bytes(path, limit, own)).replace("\r\n", "\n").replace("\r", "\n")


def decoded(content: bytes) -> str:
    """The text of a file. Raises a ContentError where it is not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ContentError(f"is no UTF-8 text: byte 0x{content[error.start]:02x} on line {line}") from None


def whole(digits: str) -> int:
    """A whole number of JSON. Raises a ContentError for one that nobody means."""
    if len(digits) > DIGITS:
        raise ContentError(f"holds a whole number of {len(digits)} digits; {DIGITS} are the most")
    return int(digits)


_JSON = json.JSONDecoder(parse_int=whole)


def parse_json(text: str, pairs: PAIRS = None) -> Any:
    """The JSON value in `text`; `pairs` makes each object of its keys and values. Raises a ContentError."""
    decoder = json.JSONDecoder(parse_int=whole, object_pairs_hook=pairs) if pairs else _JSON
    try:
        values = decoder.decode(text)
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        raise ContentError(f"is not JSON: {error}") from None
    if text.count("[") + text.count("{") > DEEPEST:
        check_depth(values)
    return values


def check_depth(values: Any) -> None:
    """Raises a ContentError where lists and objects lie too deep in each other."""
    waiting = [(values, 1)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, (dict, list)):
            if depth > DEEPEST:
                raise _too_deep()
            waiting += [(inner, depth + 1) for inner in (value.values() if isinstance(value, dict) else value)
                        if isinstance(inner, (dict, list))]


def _too_deep() -> ContentError:
    return ContentError(f"is nested too deeply: {DEEPEST} levels are the most")


def check_texts(values: Any) -> None:
    """Raises a ContentError, with the dotted key as its place, for a text that no UTF-8 file takes: with a NUL, or
    with half a character."""
    waiting: list[tuple[str, Any]] = [("", values)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, str) and NO_CHARACTER.search(value):
            raise ContentError(f"holds the text {ascii(value[:40])}, with a character that is none", key or "file")
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, item in inner:
            waiting += [(key, name), (f"{key}.{name}" if key else str(name), item)]


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a file of debzero's own, up to the first that is longer than LINE; none where it cannot be
    read."""
    with suppress(OSError, ValueError), open_regular(path, own=True) as file:
        left = LINES
        while left > 0 and (line := file.readline(LINE)):
            if len(line) == LINE and not line.endswith(b"\n"):
                break
            left -= len(line)
            yield line.decode("utf-8", errors="replace").rstrip("\r\n")
