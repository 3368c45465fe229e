"""torch as an engine whose layers are compiled and whose batches are replayed as CUDA graphs: for classes and numbers,
on GPUs with current releases of torch."""
from __future__ import annotations

import sys
from typing import Any, Optional

import numpy as np

from debzero.base.errors import InputError, Problem
from debzero.model.compiled import StepGraphs, can_compile, compile_layers
from debzero.predict.engine import Batch, Choice
from debzero.predict.engine_torch import TorchEngine
from debzero.predict.trained import Trained

PAD_TO = 8  # tokens: fewer widths to record, and GPUs multiply matrices in eights


class CompiledEngine(TorchEngine):
    """A shape of a batch (rows x width) is recorded when it comes for the second time."""

    def __init__(self, trained: Trained, choice: Choice) -> None:
        """Raises an InputError for a model that writes or chooses among texts, and where torch cannot compile."""
        import torch

        if trained.task not in ("classification", "regression"):
            raise _refused(f"does not answer for {trained.task} models")
        super().__init__(trained, choice)
        if not can_compile(torch.device(self.device)):
            raise _refused("needs a GPU and torch 2.4 or later")
        compile_layers(self.model)
        self.pad, self.most = trained.tokenizer.pad_token_id, trained.positions
        self.graphs = StepGraphs([], lambda text: print(f"debzero predict {text}", file=sys.stderr, flush=True))
        self.no_weights = torch.zeros((), device=self.device)

    def logits(self, batch: Batch) -> np.ndarray:
        return self._in_parts(padded(batch, self.pad, self.most), self._recorded)

    def _recorded(self, part: dict[str, Any]) -> np.ndarray:
        logits = self.graphs.run(self._forward, part, self.no_weights)
        return np.asarray(logits.float().cpu().numpy())

    def _forward(self, part: dict[str, Any], _: Any) -> Any:
        return self.model(**part).logits


def padded(batch: Batch, pad: int, most: Optional[int]) -> Batch:
    """With rows of a multiple of PAD_TO tokens, if the model takes so many. `most`: tokens that it takes."""
    width = batch["input_ids"].shape[1]
    more = -width % PAD_TO
    if most is not None and width + more > most:
        return batch
    return {name: np.pad(values, ((0, 0), (0, more)), constant_values=pad if name == "input_ids" else 0)
            for name, values in batch.items()}


def _refused(why: str) -> InputError:
    return InputError([Problem("the command line", "--engine", f"compiled {why}", "use --engine torch")])
