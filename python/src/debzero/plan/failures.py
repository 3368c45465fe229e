"""What checkpoints and failures cost, and how often to write one.

J. W. Young 1974, "A first order approximation to the optimum checkpoint interval"; J. T. Daly 2006, "A higher order
estimate of the optimum checkpoint interval for restart dumps", equations 20 and 37. All times are in seconds.
"""
from __future__ import annotations

import math

DAY = 24 * 3600
# Days between two failures of one host. Grattafiori et al. 2024 ("The Llama 3 Herd of Models", section 3.3.4): 419
# unexpected interruptions in 54 days of 16,384 GPUs, eight a host.
HOST_MTBF_DAYS = 54 * (16384 / 8) / 419


def best_interval(writing: float, mtbf: float) -> float:
    """Seconds of training between two checkpoints that lose the least. `writing`: a checkpoint's; `mtbf`: the mean time
    between failures of the whole job."""
    if writing >= 2 * mtbf:
        return mtbf
    half = writing / (2 * mtbf)
    return math.sqrt(2 * writing * mtbf) * (1 + math.sqrt(half) / 3 + half / 9) - writing


def lost_share(interval: float, writing: float, restart: float, mtbf: float) -> float:
    """The share of all time that is not training: writing checkpoints, what is computed again, and restarts."""
    if (interval + writing + restart) / mtbf > 500:  # the exponential would overflow: nothing is ever done
        return 1.0
    whole = mtbf * math.exp(restart / mtbf) * math.expm1((interval + writing) / mtbf)
    return 1 - interval / whole
