"""What is compared: plain DDP, the ZeRO stages, each stage's offload, and a job's own division of its model."""
from __future__ import annotations

from typing import Union

from debzero.base.errors import InputError, Problem
from debzero.bench.results import Configuration
from debzero.job.batch import BatchError
from debzero.resolve.micro_batch import undivided
from debzero.resolve.resolve import ResolvedJob
from debzero.resolve.sharding import Sharding

STAGES: tuple[Union[str, int], ...] = ("none", 1, 2, 3)
OFFLOADS = ("none", "cpu", "nvme")


def chosen(stages: list[Union[str, int]], offloads: list[str]) -> list[Sharding]:
    """The configurations asked for; those without offload come first, as they compare with each other."""
    found = []
    for offload in (o for o in OFFLOADS if o in offloads):
        for stage in (s for s in STAGES if s in stages):
            # DeepSpeed offloads parameters, and swaps to a disk, in stage 3 alone.
            if offload == "none" or (stage != "none" and (offload == "cpu" or stage == 3)):
                found.append(Sharding(0 if stage == "none" else int(stage), offload, offload if stage == 3 else "none"))
    return found


def default_offloads(resolved: ResolvedJob) -> list[str]:
    if resolved.layout.each > 1:
        return ["none"]
    return ["none", "cpu"] + (["nvme"] if resolved.job.zero.nvme_path else [])


def problems(resolved: ResolvedJob, file: str, offloads: list[str], shardings: list[Sharding],
             share_gpu: bool) -> list[Problem]:
    """Why this cannot be measured here."""
    found = []
    if "nvme" in offloads and not resolved.job.zero.nvme_path:
        found.append(Problem(file, "zero.nvme_path",
                             "is missing, and --offload asks for nvme", "add it, or leave nvme out of --offload"))
    if not shardings:
        found.append(Problem(file, "--stages",
                             "leaves nothing to measure: plain DDP has no offload, and NVMe offload needs stage 3",
                             "add a stage, or none to --offload"))
    if resolved.shares_gpus and not share_gpu:
        gpus = resolved.host.gpus
        found.append(Problem(file, "--ranks",
                             f"{resolved.layout.ranks} ranks need as many GPUs, and this host has {gpus}",
                             f"use --ranks {gpus}, or --share-gpu to rehearse them: memory then lacks a bucket, and "
                             "speed is not comparable"))
    return found


def with_own(resolved: ResolvedJob, shardings: list[Sharding]) -> list[Configuration]:
    """The job's own division of the model first, if it has one, and then undivided copies on the same ranks."""
    ways = resolved.layout
    own = [Configuration(resolved.sharding, ways.tensor, ways.stage)] if ways.each > 1 else []
    return [*own, *map(Configuration, shardings)]


def default_stages(resolved: ResolvedJob) -> list[Union[str, int]]:
    """A divided model is compared with what else one does about memory on several GPUs."""
    return list(STAGES) if resolved.layout.each == 1 else [2]


def check(resolved: ResolvedJob, file: str, offloads: list[str], shardings: list[Sharding], share_gpu: bool) -> None:
    """Raises an InputError with every problem."""
    found = problems(resolved, file, offloads, shardings, share_gpu)
    try:
        undivided(resolved)
    except BatchError as error:
        found.append(Problem(file, error.key, f"{error.reason}, as the undivided configurations need it", error.fix))
    if found:
        raise InputError(found)
