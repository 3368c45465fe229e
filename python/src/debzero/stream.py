"""The training batches in order, put together ahead of the device by a thread: the same ones however fast either is."""
from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple

from debzero.engine import Micro

AHEAD = 4  # optimizer steps


class Step(NamedTuple):
    """One optimizer step of this rank: `size` samples on all ranks; `tokens`: of this rank, with padding and without."""

    epoch: int
    size: int
    micros: list[Micro]
    tokens: int
    real_tokens: int
    widths: list[tuple[int, int]]   # rows and padded length of each micro-batch


def steps(epoch_of: Callable[[int, int], Iterator[tuple[int, list[Any]]]], collate: Callable[[Any], dict[str, Any]], first: int,
          last: int, per_epoch: int, accumulation: int, ranks: int) -> Iterator[Step]:
    """Optimizer steps `first` to `last` (without it). `epoch_of(number, start)` deals an epoch from its step `start` on."""
    def made() -> Iterator[Step]:
        step = first
        while step < last:
            epoch = step // per_epoch
            for size, parts in epoch_of(epoch, step % per_epoch):
                batches = [collate(part) for part in parts]
                # An empty part stands for nothing, and row 0 stands in for it.
                micros = [Micro(b, accumulation * ranks / size if len(p) else 0.0) for p, b in zip(parts, batches)]
                shapes = [tuple(b["input_ids"].shape) for b in batches]
                yield Step(epoch, size, micros, sum(rows * width for rows, width in shapes),
                           sum(int(b["attention_mask"].sum()) for b in batches), shapes)
                step += 1
                if step == last:
                    return

    return _ahead(made())


def _ahead(items: Iterator[Step]) -> Iterator[Step]:
    """The same items, made by a thread that is up to AHEAD of whoever asks. What it raises is raised there."""
    ready: queue.Queue[Any] = queue.Queue(AHEAD)
    left = threading.Event()

    def put(item: Any) -> bool:
        while not left.is_set():
            try:
                ready.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(None)
        except BaseException as error:
            put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        left.set()
