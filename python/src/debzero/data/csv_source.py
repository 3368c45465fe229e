"""The bytes of a csv file, cut where one row certainly ends and the next begins, so that pieces can be parsed at the
same time."""
from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, Callable, Optional

import numpy as np

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MOST_THREADS = 4  # what reads and looks at the rows keeps up with no more
QUOTE, BREAKS = ord('"'), (ord("\n"), ord("\r"))


class Source:
    """The bytes of a regular file from `start` on, first by `rows`, and what that left for pyarrow by `read`. `nul`:
    whether `read` met a zero byte; `quotes`: the quotation marks that it met.

    pyarrow takes a byte order mark at the beginning of what it is given for no part of the first value. Here it is one,
    for the header is before it. So it is given two.
    """

    closed = False

    def __init__(self, file: BinaryIO, start: int) -> None:
        self.file, self.size, self.nul, self.quotes = file, max(1, os.fstat(file.fileno()).st_size), False, 0
        self.at, self.before = start, b""

    def rows(self, separator: str, size: int) -> Iterator[memoryview]:
        """Whole rows, of at most `size` bytes together; ends where it cannot tell where a row ends, at a zero byte, or
        at the end of the file."""
        while True:
            self.file.seek(self.at)
            block = self.file.read(size)
            end = _end_of_rows(block, separator, len(block) < size) if b"\0" not in block else None
            if not end:
                break
            self.at += end
            marked = block.startswith(BYTE_ORDER_MARK)
            yield memoryview(BYTE_ORDER_MARK + block[:end]) if marked else memoryview(block)[:end]
        self.before = BYTE_ORDER_MARK if block.startswith(BYTE_ORDER_MARK) else b""
        self.file.seek(self.at)

    def read(self, size: int = -1) -> bytes:
        content = self.before + self.file.read(size - len(self.before) if size > 0 else size)
        self.before = b""
        if 1 < len(content) == size and content.endswith(b"\r"):  # pyarrow drops a line feed that begins a block then
            content = content[:-1]
            self.file.seek(-1, os.SEEK_CUR)
        self.nul, self.quotes = self.nul or b"\0" in content, self.quotes + content.count(b'"')
        return content

    def share(self) -> float:
        return min(1.0, self.file.tell() / self.size)

    def close(self) -> None:
        """The file's opener closes it."""


def _end_of_rows(block: bytes, separator: str, last: bool) -> Optional[int]:
    """Where the last whole row of a block that begins with one ends; None where that is not certain.

    It is where every second quotation mark, from the first on, stands at the beginning of a value or right behind
    another one: then those open a value (or are the second of two, which stand for one within a value), and the others
    close it. So a line break between values is one with an even number of them before it.
    """
    if b'"' not in block:
        return len(block) if last else block.rfind(b"\n") + 1
    content = np.frombuffer(block, np.uint8)
    marks = np.flatnonzero(content == QUOTE)
    before = content[marks[::2] - 1]
    if not np.isin(before[int(marks[0] == 0):], [QUOTE, ord(separator), *BREAKS]).all():
        return None
    if last and len(marks) % 2 == 0:
        return len(block)
    end = len(block)
    while end:
        end = block.rfind(b"\n", 0, end) + 1
        count = int(np.searchsorted(marks, end))
        if count % 2 == 0:
            return end
        end = int(marks[count - 1])
    return None


def ahead(work: Callable[[memoryview], Any], pieces: Iterator[memoryview]) -> Iterator[Any]:
    """What `work` makes of each piece, in their order, while threads work on the next ones."""
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Any]] = deque()
        for piece in pieces:
            waiting.append(pool.submit(work, piece))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
