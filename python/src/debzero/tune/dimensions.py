"""The names of what a search can look at beside the micro-batch, and the keys of a job that each one changes."""
from __future__ import annotations

# Every combination of these is a way of its own.
COMBINED = {
    "stage": ("zero.stage",), "offload": ("zero.offload_optimizer", "zero.offload_param"),
    "checkpointing": ("train.gradient_checkpointing",), "engine": ("zero.engine",), "favour": ("zero.favour",),
}
# These are searched one after the other, from the fastest way on: the combinations would be thousands.
REFINED = {"compile": "train.compile", "buckets": "zero.bucket", "overlap": "zero.overlap", "live": "zero.live",
           "prefetch": "zero.prefetch"}
ALL = "all"
DIMENSIONS = (*COMBINED, *REFINED)


def asked(given: list[str]) -> list[str]:
    """The dimensions that --search names."""
    return [name for name in DIMENSIONS if name in given or ALL in given]
