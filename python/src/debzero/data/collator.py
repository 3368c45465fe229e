"""Samples as tensors: one micro-batch at a time, padded."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from debzero.data.tokens import Tokens

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100  # what torch's losses take for no target


class Collator:
    """Samples -> one micro-batch of tensors in host memory, padded on the right.

    Padded to the batch's own longest sample, rounded up to a multiple of `pad_to` (GPUs multiply matrices in eights)
    but never beyond what a sample may have; or to `width`. `pin`: in page-locked memory, from which copies to a GPU
    overlap with its work.
    """

    def __init__(self, tokenizer: Any, pad_to: int, width: Optional[int], pin: bool) -> None:
        self.pad, self.pad_to, self.width, self.pin = tokenizer.pad_token_id, pad_to, width, pin

    def __call__(self, samples: Tokens, indices: np.ndarray) -> dict[str, Tensor]:
        """The model's inputs (int64[rows, width]) and `labels`: classes, values, or the tokens to answer with. Without
        indices it is row 0, whose result is discarded."""
        import torch

        rows = np.asarray(indices) if len(indices) else np.zeros(1, np.int64)
        real, places = self._layout(samples, rows, self.width)
        batch = {"input_ids": np.full(real.shape, self.pad, np.int64), "attention_mask": real.astype(np.int64)}
        batch["input_ids"][real] = samples.ids[places]
        if samples.types is not None:
            batch["token_type_ids"] = np.zeros(real.shape, np.int64)
            batch["token_type_ids"][real] = samples.types[places]
        if len(samples.labels):
            labels = samples.labels[rows]
            batch["labels"] = samples.targets[labels] if samples.targets is not None else (
                labels.astype(np.int64) if labels.dtype.kind == "i" else labels)
        if samples.answers is not None:
            real, places = self._layout(samples.answers, rows, self.width and samples.answers.limit)
            batch["labels"] = np.full(real.shape, IGNORED, np.int64)
            batch["labels"][real] = samples.answers.ids[places]
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        return {name: tensor.pin_memory() for name, tensor in tensors.items()} if self.pin else tensors

    def _layout(self, texts: Tokens, rows: np.ndarray, width: Optional[int]) -> tuple[np.ndarray, np.ndarray]:
        """Where the rows' tokens are in their batch (bool[rows, width]), and in `texts.ids` (int[all of them])."""
        lengths = texts.lengths[rows, None]
        longest = int(lengths.max())
        wanted = width or max(longest, min(-(-longest // self.pad_to) * self.pad_to, texts.limit))
        columns = np.arange(wanted)
        real = columns < lengths
        return real, (texts.offsets[rows, None] + columns)[real]
