"""What a search tries for a job on this host: the ways that it begins with, and other values of single settings. Where
there are GPUs, what `debzero plan` does not expect to fit is left out."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from debzero.job.batch import divisors
from debzero.job.schema import Job
from debzero.plan.largest_micro import at_first_start, predicted
from debzero.plan.planner import compiles_layers
from debzero.resolve import buffers, deepspeed_config
from debzero.resolve.micro_batch import with_micro
from debzero.resolve.resolve import ResolvedJob
from debzero.resolve.sharding import BUFFERS, SHARDINGS, Sharding
from debzero.tune.dimensions import COMBINED, REFINED
from debzero.tune.job_file import Value
from debzero.tune.search import Best, Others, Way

# The values that are tried for each setting. DeepSpeed's sizes are in elements; its own defaults, 5e8 for a bucket,
# take gigabytes.
VALUES: dict[str, tuple[Value, ...]] = {
    "compile": ("auto", "never"),
    "buckets": (25_000_000, 50_000_000, 100_000_000, 200_000_000),
    "overlap": (True, False),
    "live": (50_000_000, 200_000_000, 1_000_000_000),
    "prefetch": (0, 10_000_000, 50_000_000),
}
ANY_HIDDEN = 1000  # which gives none of these values
# What the choice of one setting may make another one's value impossible for.
DEPENDENT = ("zero.engine", *(f"zero.{key}" for key in BUFFERS))


def ways(resolved: ResolvedJob, file: Path, dimensions: list[str]) -> list[Way]:
    """The job's own way and, along the `dimensions`, others."""
    sizes = tuple(divisors(resolved.batch.total // resolved.batch.ranks))
    own, checkpointing = resolved.sharding, resolved.job.train.gradient_checkpointing
    shardings = _shardings(resolved, dimensions)
    found = []
    for sharding in shardings if own in shardings else [own, *shardings]:
        for checkpoints in (False, True) if "checkpointing" in dimensions else (checkpointing,):
            for others in _combined(resolved, sharding, dimensions):
                way = _planned(resolved, Way(sharding, checkpoints, sizes, 1, others), file, dimensions)
                found += [way] if way else []
    return found


def _planned(resolved: ResolvedJob, way: Way, file: Path, dimensions: list[str]) -> Optional[Way]:
    """The way with the micro-batch to begin with; None where the plan expects none to fit, unless it is the job's
    own."""
    largest, there = None, with_way(resolved, way, resolved.batch.micro)
    if there.favours_speed and "favour" in dimensions:  # without the room it would be the other way's repetition
        largest = predicted(there, file, for_speed=True)
        return replace(way, sizes=tuple(size for size in way.sizes if size <= largest),
                       first=largest) if largest else None
    if resolved.host.gpus:
        largest = predicted(there, file)
    if largest is None:
        largest = max(size for size in way.sizes if size <= resolved.batch.micro)
    is_own = way.sharding == resolved.sharding and not set(way.others) - {("zero.favour", "memory")}
    return replace(way, first=largest or 1) if largest or is_own else None


def _combined(resolved: ResolvedJob, sharding: Sharding, dimensions: list[str]) -> Iterator[Others]:
    """The job's own engine and buffers first; the other ones where they are searched for and possible."""
    for engine in _engines(resolved, sharding, dimensions):
        yield engine
        there = with_way(resolved, Way(sharding, False, (1,), 1, engine), resolved.batch.micro)
        if "favour" in dimensions and there.uses_deepspeed and there.host.gpus:
            yield (*engine, ("zero.favour", "memory" if there.favours_speed else "speed"))


def _engines(resolved: ResolvedJob, sharding: Sharding, dimensions: list[str]) -> list[Others]:
    if "engine" not in dimensions or not sharding.may_be_native or resolved.layout.each > 1:
        return [()]
    is_native = with_way(resolved, Way(sharding, False, (1,), 1), resolved.batch.micro).is_native
    return [(), (("zero.engine", "deepspeed" if is_native else "native"),)]


def _shardings(resolved: ResolvedJob, dimensions: list[str]) -> list[Sharding]:
    """Those that differ from the job's own along the `dimensions` alone."""
    own = resolved.sharding
    return [sharding for sharding in SHARDINGS
            if (sharding.stage == own.stage or "stage" in dimensions)
            and (_offload(sharding) == _offload(own) or "offload" in dimensions)
            and (not sharding.uses_nvme or resolved.job.zero.nvme_path)
            and (resolved.layout.each == 1 or sharding.stage <= 1 and sharding.on_gpus)]  # as `resolve` has it


def _offload(sharding: Sharding) -> tuple[str, str]:
    return sharding.offload_optimizer, sharding.offload_param


def refinements(resolved: ResolvedJob, file: Path, dimension: str, best: Best) -> list[Way]:
    """The fastest way so far with each other value of one setting that does something there and fits."""
    key = REFINED[dimension]
    base, _ = at_first_start(with_way(resolved, best.way, best.micro), file)
    found = []
    for value in VALUES[dimension]:
        kept = tuple(other for other in best.way.others if other[0] != key)
        way = replace(best.way, others=(*kept, (key, value)), first=best.micro)
        there = with_way(resolved, way, best.micro).favouring(base.job.zero.favour)
        if _does_something(there, base) and _fits(there, file, best.micro):
            found.append(way)
    return found


def _does_something(there: ResolvedJob, base: ResolvedJob) -> bool:
    """Whether the training differs from the one of `base`, and can be carried out."""
    if there.job.train.compile != base.job.train.compile:
        return there.host.gpus > 0 and compiles_layers(there) != compiles_layers(base)
    possible = there.uses_deepspeed and not buffers.problems(there.job, None, there.host.gpus, "")
    return possible and _zero_section(there) != _zero_section(base)


def _zero_section(resolved: ResolvedJob) -> Any:
    """What DeepSpeed gets; of the sizes that follow from the model's hidden size only whether they do."""
    return deepspeed_config.generate(resolved, ANY_HIDDEN, 0, resolved.job.zero.nvme_path or "/")["zero_optimization"]


def _fits(there: ResolvedJob, file: Path, micro: int) -> bool:
    """Also the buffers for speed, if the job has them."""
    largest = predicted(there, file, for_speed=there.favours_speed) if there.host.gpus else None
    return largest is None or largest >= micro


def with_way(resolved: ResolvedJob, way: Way, micro: int) -> ResolvedJob:
    """The job with these settings."""
    changed = with_micro(resolved, micro)
    train: dict[str, Value] = {"gradient_checkpointing": way.checkpointing}
    zero: dict[str, Value] = {}
    for path, value in way.others:
        section, _, key = path.partition(".")
        (train if section == "train" else zero)[key] = value
    if zero.get("engine") == "native":
        zero.update(dict.fromkeys(BUFFERS))
    job = changed.job.model_copy(update={
        "train": changed.job.train.model_copy(update=train),
        "zero": way.sharding.in_section(changed.job.zero).model_copy(update=zero)})
    return ResolvedJob(job, changed.batch, changed.precision, changed.why, way.sharding.stage, None, changed.host)


def values_of(resolved: ResolvedJob, best: Best, dimensions: list[str]) -> dict[str, Value]:
    """What the job file gets, by dotted key: the micro-batch, what else was searched for, and what must go with it.
    None where a key must go."""
    job = with_way(resolved, best.way, best.micro).job
    values: dict[str, Value] = {"train.micro_batch": best.micro}
    for path in (path for name, paths in COMBINED.items() if name in dimensions for path in paths):
        values[path] = _value(job, path)
    for path in (*(REFINED[name] for name in dimensions if name in REFINED), *DEPENDENT):
        if _value(job, path) != _value(resolved.job, path):
            values[path] = _value(job, path)
    return values


def _value(job: Job, path: str) -> Value:
    section, _, key = path.partition(".")
    value: Value = getattr(getattr(job, section), key)
    return value
