"""The table of the article that this kit began with, and when it is worth showing beside a bench's own figures."""
from __future__ import annotations

import re
from dataclasses import dataclass

from debzero.bench.results import BenchResults
from debzero.resolve.sharding import Sharding

ABOUT = ("The table of the article that this kit began with. It defines neither \"step\" nor how memory was read, so "
         "its figures show a tendency and no common scale. Here both are defined, below.")
SHAPES = {"base": ("bert", 768, 12), "large": ("bert", 1024, 24)}  # of BERT: type, hidden size, layers


@dataclass(frozen=True)
class Printed:
    """One row as the article prints it: memory as a text, and steps a second."""

    sharding: Sharding
    memory: str
    steps_per_second: float


ROWS = (Printed(Sharding(0), "32 GB+", 3.2), Printed(Sharding(1), "18 GB", 3.90), Printed(Sharding(2), "11 GB", 4.5),
        Printed(Sharding(3), "6 GB", 4.2))


def is_comparable(bench: BenchResults) -> bool:
    """Whether the article's figures have to do with this bench: BERT-Large is all that it says of its model."""
    return is_bert(bench, "large")


def is_bert(bench: BenchResults, size: str) -> bool:
    """Whether it is of a BERT of this size, base or large, on GPUs."""
    model = bench.job.get("model")
    if isinstance(model, dict):  # a shape, trained from scratch
        same = (model.get("type"), model.get("hidden_size"), model.get("num_hidden_layers")) == SHAPES[size]
    else:
        same = bool(re.search(rf"(^|[/_-])bert-{size}", bench.model, re.IGNORECASE))  # not ALBERT's
    return same and bench.host.gpus > 0
