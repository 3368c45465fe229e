"""How fast each sharding was where it was measured: the one table of such ratios. Nothing here is predicted; a test
computes it again from the results."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional

from debzero.resolve.sharding import Sharding


@dataclass(frozen=True)
class Measured:
    """`file`: the results of `debzero bench`, in docs/benchmarks; `what`: the job and the hardware; `ratios`: samples
    per second against plain DDP with the same micro-batch, by Sharding.name."""

    file: str
    what: str
    ratios: dict[str, float]


# Ranks that shared a GPU say nothing of speed.
ONE_RANK = Measured("bert-large-1.json", "BERT-Large in bf16 on one H200, micro-batch 64",
                    {"baseline": 1.0, "zero1": 0.21, "zero2": 0.19})
DEEPSPEED = Measured("article-2-deepspeed.json", "BERT-Large in bf16 on two H200, micro-batch 8",
                     {"baseline": 1.0, "zero1": 1.18, "zero2": 0.82, "zero3": 0.15})
NATIVE = Measured("article-2-gpus.json", "BERT-Large in bf16 on two H200, micro-batch 8, with the native engine",
                  {"baseline": 1.0, "zero1": 1.22, "zero2": 1.13, "zero3": 1.01, "zero1-cpu": 0.08, "zero2-cpu": 0.05,
                   "zero3-cpu": 0.04})


def measured(ranks: int, native: bool) -> Measured:
    """The measurement that is nearest to this number of ranks. `native`: of debzero's own engine, where nothing is
    offloaded, and of a torch that records steps of plain DDP."""
    if ranks == 1:
        return replace(ONE_RANK, ratios={"baseline": 1.0}) if native else ONE_RANK
    return NATIVE if native else DEEPSPEED


def relative_speed(sharding: Sharding, ranks: int, native: bool) -> Optional[float]:
    """Samples per second against plain DDP, 1.0; None where it has not been measured."""
    return measured(ranks, native).ratios.get(sharding.name)
