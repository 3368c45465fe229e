"""What is compared: plain PyTorch, the ZeRO stages, and each stage's offload; and the job file that measures one of
them."""
from __future__ import annotations

from typing import Any, Union

from debzero.base.errors import InputError, Problem
from debzero.resolve.resolve import ResolvedJob
from debzero.resolve.sharding import Sharding

STAGES: tuple[Union[str, int], ...] = ("none", 1, 2, 3)
OFFLOADS = ("none", "cpu", "nvme")


def chosen(stages: list[Any], offloads: list[str]) -> list[Sharding]:
    """The configurations asked for; those without offload come first, as they compare with each other."""
    found = []
    for offload in (o for o in OFFLOADS if o in offloads):
        for stage in (s for s in STAGES if s in stages):
            # DeepSpeed keeps parameters elsewhere in stage 3 alone, and swaps to a disk in stage 3 alone.
            if offload == "none" or (stage != "none" and (offload == "cpu" or stage == 3)):
                found.append(Sharding(0 if stage == "none" else int(stage), offload, offload if stage == 3 else "none"))
    return found


def default_offloads(resolved: ResolvedJob) -> list[str]:
    return ["none", "cpu"] + (["nvme"] if resolved.job.zero.nvme_path else [])


def problems(resolved: ResolvedJob, file: str, offloads: list[str], found: list[Sharding], share_gpu: bool) -> list[Problem]:
    """Why this cannot be measured here."""
    wrong = []
    if "nvme" in offloads and not resolved.job.zero.nvme_path:
        wrong.append(Problem(file, "zero.nvme_path",
                             "is missing, and --offload asks for nvme", "add it, or leave nvme out of --offload"))
    if not found:
        wrong.append(Problem(file, "--stages",
                             "leaves nothing to measure: the baseline has no offload, and NVMe takes stage 3",
                             "add a stage, or none to --offload"))
    if resolved.shares_gpus and not share_gpu:
        gpus = resolved.host.gpus
        there = "there is one" if gpus == 1 else f"there are {gpus}"
        wrong.append(Problem(file, "--ranks", f"{resolved.batch.ranks} ranks need as many GPUs, and {there}",
                             f"use --ranks {gpus}, or --share-gpu to rehearse them: memory then lacks a bucket, speed "
                             "is not comparable"))
    return wrong


def check(resolved: ResolvedJob, file: str, offloads: list[str], found: list[Sharding], share_gpu: bool) -> None:
    wrong = problems(resolved, file, offloads, found, share_gpu)
    if wrong:
        raise InputError(wrong)


