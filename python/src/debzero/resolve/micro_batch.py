"""Another micro-batch for a resolved job; the global batch stays."""
from __future__ import annotations

from dataclasses import replace

from debzero.base.environment import environment
from debzero.job.batch import divisors, split
from debzero.job.schema import Parallel
from debzero.resolve.resolve import ResolvedJob

JSON_KEYS = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def with_micro(resolved: ResolvedJob, most: int) -> ResolvedJob:
    """The job with the largest micro-batch of at most `most` that keeps the global batch."""
    batch = resolved.batch
    micro = max(size for size in divisors(batch.total // batch.ranks) if size <= most)
    train = resolved.job.train.model_copy(update={"micro_batch": micro})
    job = resolved.job.model_copy(update={"train": train})
    return replace(resolved, job=job, batch=split(batch.total, micro, batch.ranks))


def undivided(resolved: ResolvedJob) -> ResolvedJob:
    """The job of a divided model with as many ranks that each hold a whole copy, and the largest micro-batch that
    allows. Raises a BatchError where the ranks do not divide the global batch."""
    batch, ranks = resolved.batch, resolved.layout.ranks
    split(batch.total, "auto", ranks)
    micro = max(size for size in divisors(batch.total // ranks) if size <= batch.micro)
    train = resolved.job.train.model_copy(update={"micro_batch": micro})
    job = resolved.job.model_copy(update={"parallel": Parallel(), "train": train, "ranks": ranks})
    return replace(resolved, job=job, batch=split(batch.total, micro, ranks))


def is_fixed(resolved: ResolvedJob) -> bool:
    """Whether debzero must not change the micro-batch: the user's own DeepSpeed JSON sets it, or a measured run is
    about it."""
    return environment().measured or any((resolved.deepspeed or {}).get(key, "auto") != "auto" for key in JSON_KEYS)
