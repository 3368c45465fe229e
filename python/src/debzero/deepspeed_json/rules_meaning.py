"""Lint rules about what a DeepSpeed configuration means: stages, batch, precision, optimizer and schedule.

A rule is a generator of what it finds. It ignores values of the wrong type: rules_shape reports those.
"""
from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from typing import Any

from debzero.base.text import count_text, did_you_mean
from debzero.deepspeed_json import arguments, keys
from debzero.deepspeed_json.releases import parsed
from debzero.deepspeed_json.rules_state import asks_for
from debzero.deepspeed_json.view import BATCH, ZERO, ConfigView, Path, Violation, is_number, removal


def out_of_range(view: ConfigView) -> Iterator[Violation]:
    """The bounds that no table holds: of the optimizer's parameters, and of what NVMe offload needs."""
    least: list[Path] = [("optimizer", "params", key) for key in ("lr", "eps", "weight_decay")]
    for path in least:
        number = view.number(*path)
        if number is not None and number < 0:
            yield Violation("DZ106", path, f"must be at least 0, not {number}",
                            "use 0 or more, or remove it for the default")
    for part in ("offload_param", "offload_optimizer"):
        for key in ("buffer_count", "buffer_size") if view.offload(part).device == "nvme" else ():
            if view.number(ZERO, part, key) == 0:
                yield Violation("DZ106", (ZERO, part, key), "must be at least 1 where device is nvme",
                                "use 1 or more, or remove it for the default")
    stage = view.number(ZERO, "stage")
    if stage is not None and stage not in (0, 1, 2, 3):
        yield Violation("DZ106", (ZERO, "stage"), f"ZeRO has stages 0 to 3, not {stage}",
                        "use 2 for a model that fits one GPU, 3 for a larger one")


# Further settings that only stage 3 looks at.
STAGE_3 = ("sub_group_size", "zero_quantized_weights", "zero_quantized_nontrainable_weights",
           "zero_quantized_gradients")


def stage_3(view: ConfigView) -> Iterator[Violation]:
    zero, gather = view.section(ZERO), "stage3_gather_16bit_weights_on_model_save"
    if view.below(3):
        known = keys.table()[(ZERO,)].keys
        for key in zero:
            if isinstance(key, str) and key in known and (
                    key.startswith("stage3_") or key in STAGE_3 and known[key].asks(zero[key])):
                yield Violation("DZ115", (ZERO, key), f"has no effect at stage {view.stage}",
                                f"remove it, or set {view.stage_key}: 3", removal(ZERO, key))
    names = (gather, gather[len("stage3_"):], "stage3_gather_fp16_weights_on_model_save")
    asked = any(zero.get(key) is True for key in names)
    # Within a job whose JSON does not say, debzero sets it.
    if view.stage == 3 and not asked and (view.job is None or zero.get(gather) is False):
        yield Violation("DZ116", (ZERO, gather),
                        "is not set: DeepSpeed's save_16bit_model would write nothing (debzero itself gathers the "
                        "weights)",
                        "set it to true if another program loads that file")
    pipeline = asks_for(keys.table()[()].keys["pipeline"], view.section("pipeline"))
    if pipeline and not view.below(2) and view.stage is not None:
        yield Violation("DZ117", ("pipeline",), f"pipeline parallelism does not work with ZeRO stage {view.stage}",
                        f"set {ZERO}.stage: 1, or remove it")
    if view.get(ZERO, "overlap_comm") is True and view.ranks and view.gpus and view.ranks > view.gpus and view.stage:
        yield Violation("DZ118", (ZERO, "overlap_comm"),
                        f"hangs where ranks share a GPU ({count_text(view.ranks, 'rank')}, "
                        f"{count_text(view.gpus, 'GPU')})",
                        "remove it, or use one rank per GPU")


def batch(view: ConfigView) -> Iterator[Violation]:
    """train_batch_size = micro-batch x accumulation x ranks. DeepSpeed floor-divides what is missing, then asserts."""
    if view.get("elasticity", "enabled") is True:
        return
    given = [view.number(key) for key in BATCH]
    if any(value is not None and (value < 1 or value != math.floor(value)) for value in given):
        return
    total, micro, steps = (None if value is None else int(value) for value in given)
    if total is None:
        return
    parts = [(number, text) for number, text in (
        (micro, f"micro-batch {micro}"), (steps, count_text(steps or 0, "accumulation step")),
        (view.ranks, count_text(view.ranks or 0, "rank"))) if number is not None]
    product = math.prod(number for number, _ in parts)
    exact = micro is not None and steps is not None and view.ranks is not None
    if total % product if not exact else total != product:
        shown = " x ".join(text for _, text in parts)
        nearest = product if exact else max(1, (total + product // 2) // product) * product
        alone = f"the micro-batch, {micro}" if micro is not None else f"the {shown}"
        factors = f"{shown} = {product}" if len(parts) > 1 else alone
        reason = f"{total} is not {factors}" if exact else f"{total} is not a multiple of {factors}"
        unknown = ", whatever the number of ranks" if view.ranks is None and len(parts) > 1 else ""
        divides = exact and total % (product // (steps or 1)) == 0
        other = "remove gradient_accumulation_steps" if divides else "change the others"
        yield Violation("DZ120", (BATCH[0],), reason + unknown, f"set it to {nearest}, or {other}")


def precision(view: ConfigView) -> Iterator[Violation]:
    halves = [name for name in ("fp16", "bf16", "bfloat16") if view.get(name, "enabled") is True]
    if "fp16" in halves and len(halves) > 1:
        yield Violation("DZ130", (halves[1], "enabled"), "is true, and fp16.enabled too",
                        "keep bf16 on GPUs since Ampere, fp16 on older ones")
    if view.get("fp16", "enabled") is not True:
        return
    power, scale = view.number("fp16", "initial_scale_power"), view.number("fp16", "loss_scale")
    if scale is not None and scale > 0:
        yield Violation("DZ132", ("fp16", "loss_scale"),
                        f"fixes the loss scale at {scale}: it never adapts, and each step that overflows is skipped",
                        "set 0 for a scale that adapts")
    elif power is not None and power > 12:
        yield Violation("DZ131", ("fp16", "initial_scale_power"),
                        f"an initial loss scale of 2^{power} overflows at first, and each overflow skips a step",
                        "set 12, or remove it: debzero sets 12")


def _later_release(view: ConfigView, kind: str) -> str:
    """Why the installed releases do not have this optimizer yet; empty where they do."""
    ours = view.releases
    for name, package, first, here in (("Muon", "DeepSpeed", arguments.MUON, ours.deepspeed),
                                       ("Adafactor", "torch", arguments.ADAFACTOR, ours.torch)):
        if kind.lower() == name.lower() and parsed(here) < first:
            return f"{name} is an optimizer of {package} since {'.'.join(map(str, first))}, and here is {here}"
    return ""


def _lacking_package(view: ConfigView, params: dict[Any, Any]) -> str:
    """The package that DeepSpeed imports for the optimizer, where it is not installed."""
    package = arguments.PACKAGES.get(view.optimizer, "")
    if view.optimizer in arguments.ONE_BIT and view.below(1):  # else it is refused anyway
        package = arguments.BACKENDS.get(str(params.get("comm_backend_name", "nccl")), "")
    return package if package and importlib.util.find_spec(package) is None else ""


def optimizer(view: ConfigView) -> Iterator[Violation]:
    params, kind, path = view.section("optimizer", "params"), view.text("optimizer", "type"), ("optimizer", "type")
    if "max_grad_norm" in params:
        def move(config: dict[str, Any]) -> None:
            value = config["optimizer"]["params"].pop("max_grad_norm")
            if is_number(value):
                config.setdefault("gradient_clipping", value)
        yield Violation("DZ140", ("optimizer", "params", "max_grad_norm"), "DeepSpeed refuses it there",
                        "use gradient_clipping at the top level", move)
    takes = arguments.TAKES.get(view.optimizer, set())
    for key in sorted(set(map(str, params)) - takes - {"max_grad_norm"} if takes else ()):
        if not key.startswith("_"):
            yield Violation("DZ147", ("optimizer", "params", key), f"is not a parameter of {kind}",
                            did_you_mean(key, sorted(takes)))
    known = view.optimizer in {name.lower() for name in arguments.OPTIMIZERS} or kind in arguments.TORCH_OPTIMIZERS
    if kind and not known:
        usual = arguments.CLASSES.get(view.optimizer)
        yield Violation("DZ141", path, f"{kind!r} is not an optimizer of DeepSpeed or torch",
                        f"write {usual}: DeepSpeed chooses the class by the device" if usual else
                        did_you_mean(kind, [*arguments.OPTIMIZERS, *arguments.TORCH_OPTIMIZERS], 0.7))
    elif late := _later_release(view, kind):
        yield Violation("DZ141", path, late, "use AdamW")
    elif package := _lacking_package(view, params):
        yield Violation("DZ109", path, f"{kind} needs the Python package {package}, which is not installed",
                        "use AdamW")
    elif kind and not view.below(1) and view.optimizer in arguments.ONE_BIT:
        yield Violation("DZ142", path, f"{kind} does not work with ZeRO, whatever its stage", "use AdamW, or stage 0")
    elif view.optimizer == "adagrad" and not view.below(1) and not view.offload("offload_optimizer").device:
        yield Violation("DZ142", path, "with ZeRO, DeepSpeed makes torch's Adagrad anew with one group of parameters, "
                        "and debzero's are two, with weight decay and without", "use AdamW, or stage 0")
    elif (kind and not view.below(1) and view.optimizer not in arguments.TESTED
          and view.get("zero_allow_untested_optimizer") is not True):
        yield Violation("DZ142", path, f"DeepSpeed has not tested ZeRO with {kind} and refuses it",
                        "use AdamW, or set zero_allow_untested_optimizer: true")
    if view.offload("offload_optimizer").device:
        if params.get("torch_adam") is True:
            yield Violation("DZ143", ("optimizer", "params", "torch_adam"),
                            "torch's Adam is several times slower on the CPU than DeepSpeed's", "remove it")
        if view.get("zero_force_ds_cpu_optimizer") is False:
            yield Violation("DZ143", ("zero_force_ds_cpu_optimizer",),
                            "is for optimizers that a program creates itself; here DeepSpeed creates it", "remove it",
                            removal("zero_force_ds_cpu_optimizer"))


def scheduler(view: ConfigView) -> Iterator[Violation]:
    kind, params, path = view.text("scheduler", "type"), view.section("scheduler", "params"), ("scheduler", "params")
    if kind and kind not in arguments.SCHEDULERS:
        yield Violation("DZ144", ("scheduler", "type"), f"{kind!r} is not a learning-rate schedule of DeepSpeed",
                        did_you_mean(kind, list(arguments.SCHEDULERS)))
        return
    known, needed = arguments.SCHEDULERS.get(kind, ({}, ()))
    for key in needed:
        if key not in params:
            yield Violation("DZ145", (*path, key), f"is missing, and {kind} needs it",
                            'add it (with debzero, "auto" fits where it is known)')
    for key in params:
        if known and key not in known:
            yield Violation("DZ145", (*path, key), f"is not a parameter of {kind}", did_you_mean(key, sorted(known)))
    warmup, total = view.number(*path, "warmup_num_steps"), view.number(*path, "total_num_steps")
    if warmup is not None and total is not None and warmup > total:
        yield Violation("DZ146", (*path, "warmup_num_steps"),
                        f"the warm-up ({warmup} steps) is longer than the training ({total}): the rate never reaches "
                        "its peak",
                        f"use about {max(1, int(total) // 10)}")


def universal(view: ConfigView) -> Iterator[Violation]:
    if view.get("checkpoint", "load_universal") is True:
        yield Violation("DZ150", ("checkpoint", "load_universal"),
                        "debzero neither writes nor reads universal checkpoints; it reshards its own when the number "
                        "of ranks has changed", "remove it",
                        removal("checkpoint", "load_universal"))


RULES = (out_of_range, stage_3, batch, precision, optimizer, scheduler, universal)
