"""The training batches in order, put together ahead of the device by a thread: the same ones however fast either is."""
from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple

import numpy as np

from debzero.job.batch import Batch

AHEAD = 4  # optimizer steps


class Micro(NamedTuple):
    """One micro-batch on the host. `weights` (float32[n]) make its samples' losses its part of the global batch's
    mean."""

    batch: dict[str, Any]
    weights: Any


class Step(NamedTuple):
    """One optimizer step of this rank: `size` samples on all ranks; `tokens`: of this rank, with padding and
    without."""

    epoch: int
    size: int
    micros: list[Micro]
    tokens: int
    real_tokens: int
    widths: list[tuple[int, int]]   # rows and padded length of each micro-batch


def micro(part: np.ndarray, rows: int, weight: float, collate: Callable[[np.ndarray], dict[str, Any]]) -> Micro:
    """The samples of `part`, each with `weight`, made up to at least `rows` by others that weigh nothing."""
    import torch

    others = [part[0] if len(part) else 0] * (max(rows, 1) - len(part))
    weights = torch.tensor([weight] * len(part) + [0.0] * len(others))
    return Micro(collate(np.asarray([*part, *others], np.int64)), weights)


def steps(epoch_of: Callable[[int, int], Iterator[tuple[int, list[np.ndarray]]]],
          collate: Callable[[np.ndarray], dict[str, Any]], first: int, last: int, per_epoch: int, batch: Batch,
          fill: bool) -> Iterator[Step]:
    """Optimizer steps `first` to `last` (without it). `epoch_of(number, start)` deals an epoch from its step `start` on. `fill`:
    the smaller batch at an epoch's end gets as many rows as the others, because a GPU's code is made for each shape."""
    def made() -> Iterator[Step]:
        step = first
        while step < last:
            epoch = step // per_epoch
            for size, parts in epoch_of(epoch, step % per_epoch):
                micros = [micro(part, batch.micro if fill else 0, batch.accumulation * batch.ranks / size, collate)
                          for part in parts]
                batches = [one.batch for one in micros]
                shapes = [tuple(b["input_ids"].shape) for b in batches]
                yield Step(epoch, size, micros, sum(rows * width for rows, width in shapes),
                           sum(int(one.batch["attention_mask"][one.weights > 0].sum()) for one in micros), shapes)
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
