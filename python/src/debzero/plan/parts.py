"""The shapes of one rank's part of a model that tensor and pipeline parallelism share out, for the same prediction of
memory as of a whole model."""
from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Callable

from debzero.job.schema import Job
from debzero.plan.activations import Curve
from debzero.plan.memory import ParameterCounts
from debzero.plan.model_shapes import Shapes
from debzero.resolve.layout import Layout

# Of a layer's activations, 24 of 34 bytes a token and hidden unit are shared out by tensor parallelism (Korthikanti et
# al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section 4.2.1); its scores are, too.
WHOLE, SHARED = 10 / 34, 24 / 34


class PartOfShapes(Shapes):
    """Every rank's part is taken to be the same: as many layers, and an equal share of the embeddings. The first stage
    of a pipeline holds the activations of as many micro-batches as there are stages, each of its own layers: as much as
    one micro-batch takes of all layers (Narayanan et al. 2021, section 2.2)."""

    def __init__(self, whole: Shapes, layout: Layout, trace: Callable[[str, bool], Curve]) -> None:
        """`trace`: the whole model's curve."""
        self.job: Job = whole.job
        self.notes, self.task, self.name, self.config = whole.notes, whole.task, whole.name, whole.config
        self.whole, self.layout, self.trace = whole, layout, trace

    @property
    def counts(self) -> ParameterCounts:
        counts, parts = self.whole.counts, self.layout.each
        return replace(counts, decayed=tuple(math.ceil(size / parts) for size in counts.decayed),
                       others=tuple(math.ceil(size / parts) for size in counts.others),
                       largest_layer=math.ceil(counts.largest_layer / self.layout.tensor),
                       layers=math.ceil(counts.layers / parts), layer=math.ceil(counts.layer / self.layout.tensor))

    def facts(self) -> dict[str, Any]:
        return self.whole.facts()

    def curve(self, kind: str, compiled: bool) -> Curve:
        curve, tensor = self.trace(kind, compiled), self.layout.tensor
        return replace(curve, sample=curve.sample * (WHOLE + SHARED / tensor), fixed=curve.fixed / self.layout.each,
                       gradients=curve.gradients / self.layout.each)
