"""Lint rules about what a DeepSpeed configuration means: stages, offload, batch, precision, optimizer and schedule.

A rule is a generator of what it finds, and passes by what is no number or mapping: that is rules_shape's part."""
from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from debzero.base.text import did_you_mean
from debzero.deepspeed_json import keys
from debzero.deepspeed_json.view import BATCH, ZERO, Look, Path, Raw, is_number, removal


def out_of_range(look: Look) -> Iterator[Raw]:
    least: list[tuple[Path, float]] = [((key,), 1) for key in BATCH]
    least += [((ZERO, key), 1) for key in ("reduce_bucket_size", "allgather_bucket_size", "sub_group_size",
                                           "stage3_max_live_parameters")]
    least += [((ZERO, key), 0) for key in ("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold",
                                           "stage3_max_reuse_distance")]
    least += [((ZERO, part, key), 1) for part in ("offload_param", "offload_optimizer")
              for key in ("buffer_count", "buffer_size")]
    least += [(("aio", key), 1) for key in ("thread_count", "block_size", "queue_depth", "intra_op_parallelism")]
    least += [(("optimizer", "params", key), 0) for key in ("lr", "eps", "weight_decay")]
    least += [(("gradient_clipping",), 0), (("fp16", "loss_scale"), 0), (("fp16", "initial_scale_power"), 0),
              (("steps_per_print",), 1)]
    for path, bound in least:
        number = look.number(*path)
        if number is not None and number < bound:
            yield Raw("DZ106", path, f"must be at least {bound}, not {number}",
                      f"use {bound} or more, or remove it for the default")
    stage, ratio = look.number(ZERO, "stage"), look.number(ZERO, "offload_optimizer", "ratio")
    if stage is not None and stage not in (0, 1, 2, 3):
        yield Raw("DZ106", (ZERO, "stage"), f"ZeRO has the stages 0, 1, 2 and 3, not {stage}",
                  "2 suits models that fit a GPU, 3 larger ones")
    if ratio is not None and not 0 <= ratio <= 1:
        yield Raw("DZ106", (ZERO, "offload_optimizer", "ratio"), f"is a share from 0 to 1, not {ratio}",
                  "use 1 to offload all of it")


def offload_param(look: Look) -> Iterator[Raw]:
    if look.below(3) and look.device("offload_param"):
        key = "offload_param" if look.text(ZERO, "offload_param", "device") else next(
            key for key in ("cpu_offload_param", "cpu_offload_params") if look.get(ZERO, key) is True)
        yield Raw("DZ110", (ZERO, key),
                  f"needs stage 3 (the stage here is {look.stage}): below it every rank keeps all parameters on its "
                  "GPU, and DeepSpeed ignores this without a word", f"remove it, or set {ZERO}.stage: 3 to have it",
                  removal(ZERO, key))


def nvme(look: Look) -> Iterator[Raw]:
    for part in ("offload_param", "offload_optimizer"):
        if look.device(part) != "nvme":
            continue
        if part == "offload_optimizer" and look.below(3) and not look.below(1):
            yield Raw("DZ111", (ZERO, part, "device"), f"nvme needs stage 3 (the stage here is {look.stage})",
                      f"set device: cpu, or {ZERO}.stage: 3")
        path = look.get(ZERO, part, "nvme_path")
        if not path and not (look.job is not None and look.job.zero.nvme_path):
            yield Raw("DZ112", (ZERO, part, "nvme_path"), "is missing, and device is nvme",
                      "set it to a folder on a local NVMe disk")


def offload_optimizer(look: Look) -> Iterator[Raw]:
    if look.below(1) and look.device("offload_optimizer"):
        yield Raw("DZ113", (ZERO, "offload_optimizer"), "needs stage 1, 2 or 3 (the stage here is 0)",
                  f"set {ZERO}.stage: 2, or remove it")
    ratio = look.number(ZERO, "offload_optimizer", "ratio")
    if look.below(3) and ratio is not None and 0 <= ratio < 1:
        yield Raw("DZ114", (ZERO, "offload_optimizer", "ratio"),
                  f"needs stage 3 (the stage here is {look.stage}); below it all is "
                  "offloaded", "remove it, or set stage: 3", removal(ZERO, "offload_optimizer", "ratio"))


def stage_3(look: Look) -> Iterator[Raw]:
    zero, gather = look.section(ZERO), "stage3_gather_16bit_weights_on_model_save"
    if look.below(3):
        for key in zero:
            if isinstance(key, str) and key.startswith("stage3_") and key in keys.ZERO:
                yield Raw("DZ115", (ZERO, key), f"has no effect at stage {look.stage}", "remove it, or set stage: 3",
                          removal(ZERO, key))
    names = (gather, gather[len("stage3_"):], "stage3_gather_fp16_weights_on_model_save")
    asked = any(zero.get(key) is True for key in names)
    # Within a job whose JSON does not say, debzero sets it.
    if look.stage == 3 and not asked and (look.job is None or zero.get(gather) is False):
        yield Raw("DZ116", (ZERO, gather),
                  "is not set: DeepSpeed's save_16bit_model would write nothing (debzero itself gathers the "
                  "weights)",
                  "set it to true if anything else loads this file")
    if look.section("pipeline") and not look.below(2) and look.stage is not None:
        yield Raw("DZ117", ("pipeline",), f"pipeline parallelism does not go with stage {look.stage}",
                  f"set {ZERO}.stage: 1, or remove it")
    if look.get(ZERO, "overlap_comm") is True and look.ranks and look.gpus and look.ranks > look.gpus and look.stage:
        yield Raw("DZ118", (ZERO, "overlap_comm"),
                  f"hangs where ranks share a GPU ({look.ranks} ranks, {look.gpus} GPUs)",
                  "remove it, or use one rank per GPU", removal(ZERO, "overlap_comm"))


def batch(look: Look) -> Iterator[Raw]:
    """train_batch_size = micro x accumulation x ranks; DeepSpeed floor-divides what is missing, then asserts."""
    if look.get("elasticity", "enabled") is True:
        return
    given = [look.number(key) for key in BATCH]
    if any(value is not None and (value < 1 or value != math.floor(value)) for value in given):
        return
    total, micro, steps = (None if value is None else int(value) for value in given)
    if total is None:
        return
    parts = [(number, words) for number, words in ((micro, "samples a micro-batch"), (steps, "accumulation steps"),
                                                   (look.ranks, "ranks"))
             if number is not None]
    product = math.prod(number for number, _ in parts)
    exact = micro is not None and steps is not None and look.ranks is not None
    if total % product if not exact else total != product:
        shown = " x ".join(f"{number} {words}" for number, words in parts)
        nearest = product if exact else max(1, (total + product // 2) // product) * product
        reason = f"{total} is not {shown} = {product}" if exact else f"{total} is no multiple of {shown} = {product}"
        unknown = "" if look.ranks is not None else ", whatever the number of ranks"
        divides = exact and total % (product // (steps or 1)) == 0
        other = "remove gradient_accumulation_steps" if divides else "change the others"
        yield Raw("DZ120", (BATCH[0],), reason + unknown, f"set it to {nearest}, or {other}")


def precision(look: Look) -> Iterator[Raw]:
    halves = [name for name in ("fp16", "bf16", "bfloat16") if look.get(name, "enabled") is True]
    if "fp16" in halves and len(halves) > 1:
        yield Raw("DZ130", (halves[1], "enabled"), "is true, and fp16.enabled too",
                  "keep bf16 on GPUs since Ampere, fp16 on older ones")
    if look.get("fp16", "enabled") is not True:
        return
    power, scale = look.number("fp16", "initial_scale_power"), look.number("fp16", "loss_scale")
    if scale is not None and scale > 0:
        yield Raw("DZ132", ("fp16", "loss_scale"),
                  f"fixes the scale at {scale}: steps that overflow are skipped to the end", "set 0, which adapts it")
    elif power is not None and power > 12:
        yield Raw("DZ131", ("fp16", "initial_scale_power"),
                  f"a first scale of 2^{power} overflows, and each overflow skips a step",
                  "set 12, or remove it: debzero sets 12")


def optimizer(look: Look) -> Iterator[Raw]:
    params, kind, path = look.section("optimizer", "params"), look.text("optimizer", "type"), ("optimizer", "type")
    if "max_grad_norm" in params:
        def move(config: dict[str, Any]) -> None:
            value = config["optimizer"]["params"].pop("max_grad_norm")
            if is_number(value):
                config.setdefault("gradient_clipping", value)
        yield Raw("DZ140", ("optimizer", "params", "max_grad_norm"), "DeepSpeed refuses it there",
                  "use gradient_clipping at the top level", move)
    known = look.optimizer in {name.lower() for name in keys.OPTIMIZERS} or kind in keys.TORCH_OPTIMIZERS
    if kind and not known:
        yield Raw("DZ141", path, f"{kind!r} is no optimizer of DeepSpeed or torch",
                  did_you_mean(kind, [*keys.OPTIMIZERS, *keys.TORCH_OPTIMIZERS]))
    elif kind and not look.below(1) and look.optimizer in keys.ONE_BIT:
        yield Raw("DZ142", path, f"{kind} does not go with ZeRO, whatever its stage", "use AdamW, or stage 0")
    elif kind and not look.below(1) and look.optimizer not in keys.TESTED and look.get("zero_allow_untested_optimizer") is not True:
        yield Raw("DZ142", path, f"ZeRO was not tried with {kind}, and DeepSpeed refuses it",
                  "use AdamW, or set zero_allow_untested_optimizer: true")
    if look.device("offload_optimizer"):
        if params.get("torch_adam") is True:
            yield Raw("DZ143", ("optimizer", "params", "torch_adam"),
                      "torch's Adam is several times slower on the CPU than DeepSpeed's", "remove it")
        if look.get("zero_force_ds_cpu_optimizer") is False:
            yield Raw("DZ143", ("zero_force_ds_cpu_optimizer",),
                      "is for optimizers that a program makes, and here DeepSpeed does", "remove it", removal("zero_force_ds_cpu_optimizer"))


def scheduler(look: Look) -> Iterator[Raw]:
    kind, params, path = look.text("scheduler", "type"), look.section("scheduler", "params"), ("scheduler", "params")
    if kind and kind not in keys.SCHEDULERS:
        yield Raw("DZ144", ("scheduler", "type"), f"{kind!r} is no schedule of DeepSpeed",
                  did_you_mean(kind, list(keys.SCHEDULERS)))
        return
    known, needed = keys.SCHEDULERS.get(kind, ({}, ()))
    for key in needed:
        if key not in params:
            yield Raw("DZ145", (*path, key), f"is missing, and {kind} needs it",
                      'add it (with debzero, "auto" fits where it is known)')
    for key in params:
        if known and key not in known:
            yield Raw("DZ145", (*path, key), f"is no parameter of {kind}", did_you_mean(key, sorted(known)))
    warmup, total = look.number(*path, "warmup_num_steps"), look.number(*path, "total_num_steps")
    if warmup is not None and total is not None and warmup > total:
        yield Raw("DZ146", (*path, "warmup_num_steps"),
                  f"{warmup} steps of warm-up are more than the {total} in all: the rate never falls",
                  f"use about {max(1, int(total) // 10)}")


def universal(look: Look) -> Iterator[Raw]:
    if look.get("checkpoint", "load_universal") is True:
        yield Raw("DZ150", ("checkpoint", "load_universal"),
                  "a first start then looks for a checkpoint that is not there; debzero sets it "
                  "itself when the number of ranks changed", "remove it", removal("checkpoint", "load_universal"))


RULES = (out_of_range, offload_param, nvme, offload_optimizer, stage_3, batch, precision, optimizer, scheduler,
         universal)
