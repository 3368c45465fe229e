"""What is compared: plain PyTorch, the ZeRO stages, and each stage's offload; and the job file that measures one of them."""
from __future__ import annotations

import math
from typing import Any, Union

from debzero.base.errors import InputError, Problem
from debzero.resolve.resolve import Plan
from debzero.resolve.sharding import Sharding

STAGES: tuple[Union[str, int], ...] = ("none", 1, 2, 3)
OFFLOADS = ("none", "cpu", "nvme")
NEVER = 10**6  # minutes until a checkpoint: a run that is measured writes none


def chosen(stages: list[Any], offloads: list[str]) -> list[Sharding]:
    """The configurations asked for; those without offload come first, as they compare with each other."""
    found = []
    for offload in (o for o in OFFLOADS if o in offloads):
        for stage in (s for s in STAGES if s in stages):
            # DeepSpeed keeps parameters elsewhere in stage 3 alone, and swaps to a disk in stage 3 alone.
            if offload == "none" or (stage != "none" and (offload == "cpu" or stage == 3)):
                found.append(Sharding(0 if stage == "none" else int(stage), offload, offload if stage == 3 else "none"))
    return found


def default_offloads(plan: Plan) -> list[str]:
    return ["none", "cpu"] + (["nvme"] if plan.job.zero.nvme_path else [])


def problems(plan: Plan, file: str, offloads: list[str], found: list[Sharding], share_gpu: bool) -> list[Problem]:
    """Why this cannot be measured here."""
    wrong = []
    if "nvme" in offloads and not plan.job.zero.nvme_path:
        wrong.append(Problem(file, "zero.nvme_path", "is missing, and --offload asks for nvme", "add it, or leave nvme out of --offload"))
    if not found:
        wrong.append(Problem(file, "--stages", "leaves nothing to measure: the baseline has no offload, and NVMe takes stage 3",
                             "add a stage, or none to --offload"))
    if plan.shares_gpus and not share_gpu:
        gpus = plan.host.gpus
        there = "there is one" if gpus == 1 else f"there are {gpus}"
        wrong.append(Problem(file, "--ranks", f"{plan.batch.ranks} ranks need as many GPUs, and {there}",
                             f"use --ranks {gpus}, or --share-gpu to rehearse them: memory then lacks a bucket, speed is not comparable"))
    return wrong


def check(plan: Plan, file: str, offloads: list[str], found: list[Sharding], share_gpu: bool) -> None:
    wrong = problems(plan, file, offloads, found, share_gpu)
    if wrong:
        raise InputError(wrong)


def derive(plan: Plan, sharding: Sharding, output: str, warmup: int, steps: int) -> dict[str, Any]:
    """The job file (a mapping) that runs `warmup` + `steps` optimizer steps of `plan`'s job in another configuration.

    The micro-batch and the precision are the plan's, so they are the same in every row. Of the user's own DeepSpeed JSON
    the plan holds the batch, the rates and the precision; the rest of it would not let the stages differ and is left out. All batches
    are padded to the same length: the first ones show the most that the job can take, and none but them is compiled or recorded for.
    """
    made: dict[str, Any] = plan.job.model_dump(mode="json")
    made["deepspeed"], made["output"], made["ranks"] = None, output, plan.batch.ranks
    made["data"]["padding"] = "max_length"
    made["train"].update(
        micro_batch=plan.batch.micro, precision=plan.precision, epochs=warmup + steps, max_steps=warmup + steps,
        # A progress line waits for the device: as few as the limits of warm-up and measurement allow.
        log_every=math.gcd(warmup, steps), evaluate_every=None, select="last", patience=None)
    made["zero"].update(sharding.as_dict())
    made["checkpoint"].update(minutes=NEVER, steps=None)
    made.pop("deepspeed")
    return {key: {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value for key, value in made.items()}
