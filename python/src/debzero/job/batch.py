"""The batch arithmetic: global batch = micro-batch x accumulation steps x ranks, exactly."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional, Union

from debzero.base.text import count_text, ratio_text

LARGEST_AUTO_MICRO = 32  # where no GPU memory limits it


@dataclass(frozen=True)
class Names:
    """What the sizes are called where they were written, for fixes."""

    total: str = "global_batch"
    micro: str = "micro_batch"
    accumulation: str = "gradient_accumulation_steps"


class BatchError(ValueError):
    """Batch sizes that do not fit together: the key of a job or of DeepSpeed's JSON, a reason with the arithmetic, and
    a fix with the nearest that do."""

    def __init__(self, key: str, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.key, self.reason, self.fix = key, reason, fix


@dataclass(frozen=True)
class Batch:
    """How the samples of one optimizer step are divided: `micro` samples in each of `accumulation` steps on each rank.
    """

    total: int
    micro: int
    accumulation: int
    ranks: int

    def __str__(self) -> str:
        return (f"global batch {self.total} = micro-batch {self.micro} x "
                f"{count_text(self.accumulation, 'accumulation step')} x {count_text(self.ranks, 'rank')}")


def divisors(count: int) -> list[int]:
    """Those of `count`, ascending: the micro-batches that divide its samples without a rest."""
    small = [size for size in range(1, math.isqrt(count) + 1) if count % size == 0]
    return small + [count // size for size in reversed(small) if size * size != count]


def nearest(value: int, unit: int) -> str:
    """The multiples of `unit` around `value`, as people write it: "62 or 64"."""
    below, above = value // unit * unit, -(-value // unit) * unit
    return f"{below} or {above}" if below else str(above)


def split(total: int, micro: Union[int, str], ranks: int, accumulation: Optional[int] = None,
          names: Names = Names()) -> Batch:  # noqa: B008 - it is frozen
    """Divide `total` samples; `micro` may be "auto". `accumulation`: of DeepSpeed's JSON alone. Raises BatchError when
    the product cannot be `total`."""
    on_ranks = count_text(ranks, "rank")
    if total % ranks:
        raise BatchError(
            "train.global_batch",
            f"{total} samples cannot be divided equally among {on_ranks} ({total} / {ranks} = "
            f"{ratio_text(total / ranks)})",
            f"use {nearest(total, ranks)}, or another number of ranks",
        )
    share = total // ranks
    if accumulation is not None:
        if share % accumulation:
            raise BatchError(
                "gradient_accumulation_steps",
                f"{total} / {on_ranks} / {count_text(accumulation, 'accumulation step')} = "
                f"{ratio_text(share / accumulation)}, not a whole micro-batch",
                f"use {names.total} {nearest(total, ranks * accumulation)}, or a {names.accumulation} that divides "
                f"{share}",
            )
        if micro == "auto":
            micro = share // accumulation
    elif micro == "auto":
        micro = max(size for size in divisors(share) if size <= LARGEST_AUTO_MICRO)
    assert isinstance(micro, int)
    if accumulation is not None and micro * accumulation != share:
        raise BatchError(
            "gradient_accumulation_steps",
            f"micro-batch {micro} x {count_text(accumulation, 'accumulation step')} x {on_ranks} = "
            f"{micro * accumulation * ranks}, not {total}",
            f"use {names.total} {micro * accumulation * ranks}, or {names.micro}: auto",
        )
    if share % micro:
        below = max(size for size in divisors(share) if size <= micro)
        raise BatchError(
            "train.micro_batch",
            f"global batch {total} / {on_ranks} / micro-batch {micro} = {ratio_text(share / micro)} accumulation "
            "steps, which must be a whole number",
            f"use {names.micro} {below} (or auto), or {names.total} {nearest(total, micro * ranks)}",
        )
    return Batch(total, micro, share // micro, ranks)
