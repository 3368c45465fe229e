"""The training batches in order, collated by a thread ahead of the device: the same ones however fast either is."""
from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

import numpy as np

from debzero.job.batch import Batch

if TYPE_CHECKING:
    from torch import Tensor

AHEAD = 4  # optimizer steps


class Micro(NamedTuple):
    """One micro-batch on the host. `weights` (float32[n]): the sum of its samples' losses times these is its part of
    the global batch's mean."""

    batch: dict[str, Tensor]
    weights: Tensor


class Step(NamedTuple):
    """One optimizer step of this rank."""

    epoch: int
    size: int                       # samples, on all ranks
    micros: list[Micro]
    tokens: int                     # of this rank, with padding
    real_tokens: int                # of this rank, without
    widths: list[tuple[int, int]]   # rows and padded length of each micro-batch


def micro(part: np.ndarray, rows: int, weight: float, collate: Callable[[np.ndarray], dict[str, Tensor]]) -> Micro:
    """The samples of `part`, each with `weight`, filled up to at least `rows` with others of weight 0."""
    import torch

    others = [part[0] if len(part) else 0] * (max(rows, 1) - len(part))
    weights = torch.tensor([weight] * len(part) + [0.0] * len(others))
    return Micro(collate(np.asarray([*part, *others], np.int64)), weights)


def steps(epoch_of: Callable[[int, int], Iterator[tuple[int, list[np.ndarray]]]],
          collate: Callable[[np.ndarray], dict[str, Tensor]], numbers: range, per_epoch: int, batch: Batch,
          fill: bool) -> Iterator[Step]:
    """The optimizer steps of these numbers. `epoch_of(number, start)` deals an epoch from its step `start` on. `fill`:
    the smaller batch at an epoch's end gets as many rows as the others, because a GPU's code is compiled for each
    shape."""
    def in_order() -> Iterator[Step]:
        step = numbers.start
        while step < numbers.stop:
            epoch = step // per_epoch
            for size, parts in epoch_of(epoch, step % per_epoch):
                micros = [micro(part, batch.micro if fill else 0, batch.accumulation * batch.ranks / size, collate)
                          for part in parts]
                batches = [one.batch for one in micros]
                shapes = [tuple(b["input_ids"].shape) for b in batches]
                yield Step(epoch, size, micros, sum(rows * width for rows, width in shapes),
                           sum(int(one.batch["attention_mask"][one.weights > 0].sum()) for one in micros), shapes)
                step += 1
                if step == numbers.stop:
                    return

    return _ahead(in_order())


def _ahead(items: Iterator[Step]) -> Iterator[Step]:
    """The same items, computed by a thread up to AHEAD of the caller. What it raises is raised in the caller."""
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
