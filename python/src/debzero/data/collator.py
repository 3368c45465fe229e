"""Samples as tensors: one micro-batch at a time, padded."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from debzero.data.tokens import Tokens

if TYPE_CHECKING:
    from torch import Tensor


class Collator:
    """Samples -> one micro-batch of tensors in host memory, padded on the right.

    Padded to the batch's own longest sample, rounded up to a multiple of `pad_to` (GPUs multiply matrices in eights)
    but never beyond what a sample may have; or to `width`. `pin`: in page-locked memory, from which copies to a GPU
    overlap with its work.
    """

    def __init__(self, tokenizer: Any, pad_to: int, width: Optional[int], pin: bool) -> None:
        self.pad, self.pad_to, self.width, self.pin = tokenizer.pad_token_id, pad_to, width, pin

    def __call__(self, samples: Tokens, indices: np.ndarray) -> dict[str, Tensor]:
        """The model's inputs (int64[rows, width]) and `labels`. Without indices it is row 0, whose result is
        discarded."""
        import torch

        rows = np.asarray(indices) if len(indices) else np.zeros(1, np.int64)
        lengths = samples.lengths[rows, None]
        longest = int(lengths.max())
        width = self.width or max(longest, min(-(-longest // self.pad_to) * self.pad_to, samples.limit))
        columns = np.arange(width)
        real = columns < lengths
        places = (samples.offsets[rows, None] + columns)[real]
        batch = {"input_ids": np.full(real.shape, self.pad, np.int64), "attention_mask": real.astype(np.int64)}
        batch["input_ids"][real] = samples.ids[places]
        if samples.types is not None:
            batch["token_type_ids"] = np.zeros(real.shape, np.int64)
            batch["token_type_ids"][real] = samples.types[places]
        if len(samples.labels):
            labels = samples.labels[rows]
            batch["labels"] = samples.targets[labels] if samples.targets is not None else (
                labels.astype(np.int64) if labels.dtype.kind == "i" else labels)
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        return {name: tensor.pin_memory() for name, tensor in tensors.items()} if self.pin else tensors
