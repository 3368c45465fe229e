"""Which rows are held out for evaluation, where the data set does not say."""
from __future__ import annotations

from typing import Optional

import numpy as np


def held_out_count(count: int, share: float, sizes: np.ndarray) -> int:
    """How many rows are held out: about `share`, at least one, and of each class (of `sizes` rows) all but one at most.
    """
    return min(max(1, int(share * count + 0.5)), int(np.maximum(sizes - 1, 0).sum()))


def held_out(count: int, share: float, seed: int, codes: Optional[np.ndarray] = None) -> np.ndarray:
    """bool[count]: about `share` of the rows, the same for the same seed; at least one, where one can be spared.

    With `codes` (int[count], each row's class) every class gives its share, as nearly as whole rows can (by largest
    remainder), and keeps at least one row for training: a class of one row is never held out.
    """
    dice = np.random.default_rng([seed, count])
    if codes is None:
        codes = np.zeros(count, np.int32)
    sizes = np.bincount(codes) if count else np.zeros(0, np.int64)
    most = np.maximum(sizes - 1, 0)
    wanted = held_out_count(count, share, sizes)
    quota = share * sizes
    taken = np.minimum(np.floor(quota + 1e-9).astype(np.int64), most)
    # Classes of the same remainder, such as those of few rows, take turns by lot.
    order = np.lexsort((dice.permutation(len(sizes)), -(quota - taken)))
    while taken.sum() < wanted:
        for number in order:
            if taken[number] < most[number] and taken.sum() < wanted:
                taken[number] += 1
    few = codes.astype(np.int16) if len(sizes) < 2**15 else codes  # numpy sorts these in linear time
    by_class = np.argsort(few, kind="stable")
    lots = dice.random(count)[by_class]
    chosen = np.zeros(count, bool)
    for begin, size, rows in zip(np.cumsum(sizes) - sizes, sizes, taken):
        if rows:
            lot = lots[begin : begin + size]
            low = np.flatnonzero(lot <= np.partition(lot, rows - 1)[rows - 1])[:rows]
            chosen[by_class[begin + low]] = True
    return chosen
