"""The search for the fastest settings, in a third of the trials that a sweep would take. It knows nothing of how a
trial is run.

A `Way` is everything but the micro-batch: the sharding, whether activations are recomputed, and what else is not as the
job has it. Along its micro-batches speed hardly ever has more than one peak, so the search climbs from a good start to
the nearest peak; and a way whose first trial is slower than the best so far is not tried with other micro-batches.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Callable, NamedTuple, Optional

from debzero.resolve.sharding import Sharding
from debzero.tune.job_file import Value

BETTER = 1.02  # times the samples/s: a smaller difference is noise
SHARE = 3      # of a sweep's trials, at most one in this many is run
FEWEST = 2     # trials: one setting has to be compared with something


Others = tuple[tuple[str, Value], ...]  # settings by the job's dotted keys


@dataclass(frozen=True)
class Way:
    """A sharding with or without gradient checkpointing, the micro-batches that it could have (`sizes`, in samples,
    ascending), the one to begin with (`first`), and other settings that differ from the job's."""

    sharding: Sharding
    checkpointing: bool
    sizes: tuple[int, ...]
    first: int
    others: Others = ()

    def __str__(self) -> str:
        settings = (f", {path.partition('.')[2]}: {str(value).lower()}" for path, value in self.others)
        return self.sharding.label + (", gradient checkpointing" if self.checkpointing else "") + "".join(settings)


class Best(NamedTuple):
    """The fastest settings so far; `speed` in samples/s."""

    way: Way
    micro: int
    speed: float


# Measures a way with a micro-batch: samples/s, or None where memory or time does not suffice. Raises Unfit where the
# way fails with any micro-batch.
Trial = Callable[[Way, int], Optional[float]]


class Unfit(Exception):  # noqa: N818 - no error: the search continues
    """A way that fails for another reason than its micro-batch."""


def climb(way: Way, trial: Trial, most: int, goal: float = 0.0) -> Optional[tuple[int, float]]:
    """The best micro-batch of a way and its samples/s, in at most `most` trials that run; None where none runs. Without
    a `goal` (samples/s), smaller micro-batches are tried until one runs; with one, a way whose first trial misses it
    gets no second one."""
    sizes, at = way.sizes, way.sizes.index(way.first)
    speeds = {at: trial(way, sizes[at])}
    while speeds[at] is None and at > 0 and not goal:
        at -= 1
        speeds[at] = trial(way, sizes[at])
    best = speeds[at]
    if best is None:
        return None
    for direction in (-1, 1) if best >= goal else ():
        while 0 <= at + direction < len(sizes) and at + direction not in speeds and _ran(speeds) < most:
            try:
                speeds[at + direction] = speed = trial(way, sizes[at + direction])
            except Unfit:  # this micro-batch alone: another one has run
                break
            if speed is None or speed < best * BETTER:
                break
            at, best = at + direction, speed
    return sizes[at], best


def _ran(speeds: dict[int, Optional[float]]) -> int:
    return sum(speed is not None for speed in speeds.values())


def search(ways: list[Way], trial: Trial) -> Optional[Best]:
    """The fastest way with its micro-batch; None where nothing runs. `ways`: the most promising first."""
    ran = 0

    def counted(way: Way, micro: int) -> Optional[float]:
        nonlocal ran
        speed = trial(way, micro)
        ran += speed is not None
        return speed

    best: Optional[Best] = None
    for way in ways:
        left = allowed(ways) - ran
        if best is None or left > 0:
            try:
                found = climb(way, counted, left, best.speed * BETTER if best else 0.0)
            except Unfit:
                continue
            if found and (best is None or found[1] >= best.speed * BETTER):
                best = Best(way, *found)
    return best


def refine(best: Best, settings: Iterable[Callable[[Best], list[Way]]], trial: Trial) -> Best:
    """The fastest way after one setting after the other was tried with its other values. Each of `settings` gives the
    ways that differ from the fastest so far in that one."""
    for others in settings:
        for way in others(best):
            try:
                found = climb(way, trial, len(way.sizes), best.speed * BETTER)
            except Unfit:
                continue
            if found and found[1] >= best.speed * BETTER:
                best = Best(way, *found)
    return best


def allowed(ways: list[Way]) -> int:
    """The number of trials that the search may run. Those that fail are not counted."""
    return max(FEWEST, sum(len(way.sizes) for way in ways) // SHARE)
