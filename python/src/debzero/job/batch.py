"""The batch arithmetic: global batch = micro-batch x accumulation steps x ranks, exactly."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional, Union

LARGEST_AUTO_MICRO = 32  # where nothing tells what fits: small enough for every model that fits at all


class BatchError(ValueError):
    """Numbers that cannot hold, as a reason with the arithmetic and a fix with the nearest that do."""

    def __init__(self, key: str, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.key, self.reason, self.fix = key, reason, fix


@dataclass(frozen=True)
class Batch:
    """How one optimizer step's samples are shared out."""

    total: int
    micro: int
    accumulation: int
    ranks: int

    def __str__(self) -> str:
        return (
            f"global batch {self.total} = micro-batch {self.micro} x {self.accumulation} accumulation "
            f"step{'s' if self.accumulation > 1 else ''} x {self.ranks} rank{'s' if self.ranks > 1 else ''}"
        )


def divisors(count: int) -> list[int]:
    """Those of `count`, ascending: the micro-batches that share its samples out exactly."""
    small = [size for size in range(1, math.isqrt(count) + 1) if count % size == 0]
    return small + [count // size for size in reversed(small) if size * size != count]


def nearest(value: int, unit: int) -> str:
    """The multiples of `unit` around `value`, as people write it: "62 or 64"."""
    below, above = value // unit * unit, -(-value // unit) * unit
    return f"{below} or {above}" if below else str(above)


def split(total: int, micro: Union[int, str], ranks: int, accumulation: Optional[int] = None) -> Batch:
    """Share `total` samples out; `micro` may be "auto". Raises BatchError when the product cannot be `total`."""
    if total % ranks:
        raise BatchError(
            "train.global_batch",
            f"{total} samples cannot be shared equally by {ranks} ranks ({total} / {ranks} = {total / ranks:g})",
            f"use {nearest(total, ranks)}, or another number of ranks",
        )
    share = total // ranks
    if accumulation is not None:
        if share % accumulation:
            raise BatchError(
                "train.global_batch",
                f"{total} / {ranks} ranks / {accumulation} accumulation steps = {share / accumulation:g}, no whole "
                "micro-batch",
                f"use {nearest(total, ranks * accumulation)}",
            )
        if micro == "auto":
            micro = share // accumulation
    elif micro == "auto":
        micro = max(size for size in divisors(share) if size <= LARGEST_AUTO_MICRO)
    assert isinstance(micro, int)
    if accumulation is not None and micro * accumulation != share:
        raise BatchError(
            "train.global_batch",
            f"micro-batch {micro} x {accumulation} accumulation steps x {ranks} ranks = "
            f"{micro * accumulation * ranks}, not {total}",
            f"use global_batch {micro * accumulation * ranks}, or micro_batch: auto",
        )
    if share % micro:
        below = max(size for size in divisors(share) if size <= micro)
        raise BatchError(
            "train.micro_batch",
            f"global batch {total} / {ranks} ranks / micro-batch {micro} = {share / micro:g} accumulation steps, "
            "which must be a whole number",
            f"use micro_batch {below} (or auto), or global_batch {nearest(total, micro * ranks)}",
        )
    return Batch(total, micro, share // micro, ranks)
