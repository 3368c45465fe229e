"""One rank's part of a model that tensor and pipeline parallelism divide: the model's own modules, cut on the meta
device as a training cuts them (model/tensor_parallel, model/pipeline), and traced as a whole model is."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from debzero.model.parts import Part
from debzero.model.pipeline import PassedOn, Stage
from debzero.model.tensor_parallel import Divided
from debzero.plan.activations import Curve
from debzero.plan.model_shapes import Shapes
from debzero.resolve.layout import Layout


class Alone(Part):
    """The first of the ranks that compute a layer together, which has the largest part. It exchanges nothing, which
    changes no shape, and drops nothing."""

    def __init__(self, of: int) -> None:
        super().__init__(0, of, None, torch.device("meta"))

    def all_reduce(self, tensor: Any, op: Any = None) -> None:
        """The others' values do not matter."""

    def own_numbers(self) -> None:
        """The meta device has none."""

    def shared_numbers(self) -> None:
        """Likewise."""


class PartOfShapes(Shapes):
    """The part of a rank in pipeline stage `number` (from 0)."""

    part: Stage

    def __init__(self, whole: Shapes, layout: Layout, number: int) -> None:
        self.job, self.notes, self.task = whole.job, whole.notes, whole.task
        self.name, self.config = whole.name, whole.config
        self.untouched, self.layout, self.number = whole.untouched, layout, number

    def _build(self) -> Any:
        model = super()._build()
        if self.layout.tensor > 1:
            Divided(model, Alone(self.layout.tensor))
        self.part = Stage(model, self.number, self.layout.stage)
        return model

    def losses(self, model: Any, batch: dict[str, Any]) -> Any:
        answers = batch["labels"].shape if "labels" in batch and batch["labels"].dim() > 1 else (0, 0)
        shapes = self.part.shapes(tuple(batch["input_ids"].shape), tuple(answers))
        self.part.received = tuple(torch.empty(shape).requires_grad_() for shape in shapes)
        try:
            return super().losses(model, batch)
        except PassedOn as passed:
            return [hidden.float() for hidden in passed.hidden]

    def curve(self, kind: str, compiled: bool) -> Curve:
        found = super().curve(kind, compiled)
        self.part.received = ()
        return found

    def passed_bytes(self) -> int:
        """Of a sample: the float32 hidden states to the next stage, and the gradients to the one before."""
        borders = (self.number > 0) + (self.number < self.layout.stage - 1)
        lengths = self.job.data.max_length + (self.answer if self.job.task == "text-to-text" else 0)
        return 4 * borders * lengths * self.hidden

    def in_flight(self, micro_batches: int) -> int:
        """How many of a step's micro-batches the stage has begun and not ended, at most (1F1B)."""
        return min(self.layout.stage - self.number, micro_batches)


def overlaid(curve: Curve, count: int) -> Curve:
    """The memory of a micro-batch that is begun and ended while the activations of others wait for their backward pass:
    `count` are in flight."""
    end = curve.forward - 1
    return replace(curve, fixed=curve.fixed + (count - 1) * float(np.asarray(curve.fixed)[end]),
                   sample=curve.sample + (count - 1) * float(np.asarray(curve.sample)[end]))


