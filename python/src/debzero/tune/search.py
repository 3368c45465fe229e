"""Finds the fastest way and micro-batch in a third of the trials that a sweep would take."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional

from debzero.resolve.sharding import Sharding

BETTER = 1.02  # times the samples/s: less is noise
SHARE = 3      # at most one in so many of a sweep's trials
FEWEST = 2     # trials: one setting has to be compared with something


@dataclass(frozen=True)
class Way:
    """A way to train, and the micro-batches that it could have: those of `sizes` (ascending), beginning with
    `first`."""

    sharding: Sharding
    checkpointing: bool
    sizes: tuple[int, ...]
    first: int

    def __str__(self) -> str:
        return self.sharding.label + (", gradient checkpointing" if self.checkpointing else "")
# samples/s of a way with a micro-batch; None where memory does not reach, or time. Raises Unfit where no micro-batch
# would run.
Trial = Callable[[Way, int], Optional[float]]


class Unfit(Exception):  # noqa: N818 - no error: the search goes on
    """A way that fails for another reason than its size."""


def climb(way: Way, trial: Trial, most: int, goal: float = 0.0) -> Optional[tuple[int, float]]:
    """The best micro-batch of a way and its samples/s, in at most `most` trials; None where none runs. Without a `goal` (samples/s),
    smaller ones are tried until one runs; with it, a way whose first trial does not reach it is left at that."""
    sizes, at = way.sizes, way.sizes.index(way.first)
    speeds = {at: trial(way, sizes[at])}
    while speeds[at] is None and at > 0 and not goal:
        at -= 1
        speeds[at] = trial(way, sizes[at])
    best = speeds[at]
    if best is None:
        return None
    for direction in (-1, 1) if best >= goal else ():
        while 0 <= at + direction < len(sizes) and at + direction not in speeds and _count(speeds) < most:
            try:
                speeds[at + direction] = found = trial(way, sizes[at + direction])
            except Unfit:  # this one; another has run
                break
            if found is None or found < best * BETTER:
                break
            at, best = at + direction, found
    return sizes[at], best


def _count(speeds: dict[int, Optional[float]]) -> int:
    return sum(speed is not None for speed in speeds.values())


def search(ways: list[Way], trial: Trial) -> Optional[tuple[Way, int, float]]:
    """The best way, its micro-batch and its samples/s. `ways`: the most promising first."""
    ran: list[int] = []

    def counted(way: Way, micro: int) -> Optional[float]:
        speed = trial(way, micro)
        ran.extend([micro] if speed is not None else [])
        return speed

    best: Optional[tuple[Way, int, float]] = None
    for way in ways:
        left = allowed(ways) - len(ran)
        if best is None or left > 0:
            try:
                found = climb(way, counted, left, best[2] * BETTER if best else 0.0)
            except Unfit:
                continue
            if found and (best is None or found[1] >= best[2] * BETTER):
                best = way, *found
    return best


def allowed(ways: list[Way]) -> int:
    """Trials that run; those that do not are not counted."""
    return max(FEWEST, sum(len(way.sizes) for way in ways) // SHARE)
