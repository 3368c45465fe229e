"""What is wrong with a DeepSpeed JSON, rule by rule: DeepSpeed itself ignores much of it, or asserts without saying where.

A rule is a generator of findings with one code of CODES. A finding's `edit` mends the configuration where only one change can
be meant. "auto" and absent keys count as open; what is no number or mapping is `wrong_type`'s, and other rules pass it by.
"""
from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Callable, Literal, NamedTuple, Optional

from debzero import dskeys
from debzero.errors import Problem
from debzero.job import Job, did_you_mean

CODES = {
    "DZ101": "a key that DeepSpeed does not know",
    "DZ102": "a value of the wrong type",
    "DZ103": '"auto" where nothing fills it in',
    "DZ104": "a key that later releases renamed or dropped",
    "DZ105": "a key written twice",
    "DZ106": "a number out of range",
    "DZ110": "offload_param below stage 3",
    "DZ111": "NVMe offload below stage 3",
    "DZ112": "NVMe offload without nvme_path",
    "DZ113": "offload_optimizer without ZeRO",
    "DZ114": "a partial offload (ratio) below stage 3",
    "DZ115": "stage 3's settings below stage 3",
    "DZ116": "stage 3 whose save_16bit_model writes nothing",
    "DZ117": "pipeline parallelism with stage 2 or 3",
    "DZ118": "overlapping communication between ranks that share a GPU",
    "DZ120": "batch sizes that do not fit together",
    "DZ130": "fp16 and bf16 at once",
    "DZ131": "a first loss scale that wastes steps",
    "DZ132": "a fixed loss scale",
    "DZ140": "max_grad_norm among the optimizer's parameters",
    "DZ141": "an unknown optimizer",
    "DZ142": "an optimizer that ZeRO was not tried with",
    "DZ143": "an optimizer setting without effect, or slow, when offloaded",
    "DZ144": "an unknown learning-rate schedule",
    "DZ145": "a schedule's parameter that is missing or unknown",
    "DZ146": "a warm-up longer than the training",
    "DZ150": "load_universal set by hand",
}
WARNINGS = {"DZ103", "DZ104", "DZ115", "DZ116", "DZ131", "DZ132", "DZ143", "DZ146", "DZ150"}
Path = tuple[Any, ...]
Edit = Callable[[dict[str, Any]], None]
ZERO = "zero_optimization"
BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


@dataclass(frozen=True)
class Finding:
    """A problem, with the change that mends it where only one can be meant, and that change in words."""

    problem: Problem
    edit: Optional[Edit] = None
    change: str = ""


class Raw(NamedTuple):
    """What a rule says; `lint` adds the file and the severity."""

    code: str
    path: Path
    reason: str
    fix: str
    edit: Optional[Edit] = None
    severity: Optional[Literal["error", "warning"]] = None


class Look:
    """The configuration as the rules see it."""

    def __init__(self, config: dict[str, Any], ranks: Optional[int], gpus: Optional[int], job: Optional[Job]) -> None:
        self.config, self.ranks, self.gpus, self.job = config, ranks, gpus, job

    def get(self, *path: str) -> Any:
        """The value at `path`; None when it is absent, open or under something that is no mapping."""
        value: Any = self.config
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        return None if value == "auto" else value

    def number(self, *path: str) -> Optional[float]:
        value = self.get(*path)
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None

    def text(self, *path: str) -> str:
        value = self.get(*path)
        return value if isinstance(value, str) else ""

    def section(self, *path: str) -> dict[Any, Any]:
        value = self.get(*path)
        return value if isinstance(value, dict) else {}

    @property
    def stage(self) -> Optional[int]:
        """The stage that will hold; None while it is open. The job's, where the JSON does not say."""
        given = self.section(ZERO).get("stage")
        if given is None and self.job is not None:
            return 0 if self.job.zero.stage == "none" else int(self.job.zero.stage)
        if given is None:
            return 0
        number = self.number(ZERO, "stage")
        return int(number) if number in (0, 1, 2, 3) else None

    def below(self, least: int) -> bool:
        return self.stage is not None and self.stage < least

    def device(self, part: str) -> str:
        """Where `part` is offloaded to, in today's or yesterday's words; empty for nowhere."""
        old = {"offload_param": ("cpu_offload_param", "cpu_offload_params"), "offload_optimizer": ("cpu_offload",)}[part]
        found = self.text(ZERO, part, "device")
        return "" if found == "none" else found or ("cpu" if any(self.get(ZERO, key) is True for key in old) else "")

    @property
    def optimizer(self) -> str:
        """The optimizer's type in small letters."""
        return self.text("optimizer", "type").lower()


def removal(*path: Any) -> Edit:
    def edit(config: dict[str, Any]) -> None:
        inner: Any = config
        for part in path[:-1]:
            inner = inner.get(part) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner.pop(path[-1], None)
    return edit


def replacement(path: Path, key: Any, value: Any) -> Edit:
    """Put `key: value` in the place of the key at `path`, unless the new one is there already."""
    def edit(config: dict[str, Any]) -> None:
        inner: Any = config
        for part in path[:-1]:
            inner = inner.get(part)
        old = list(inner.items())
        inner.clear()
        for name, kept in old:
            if name != path[-1]:
                inner[name] = kept
            elif key == name or all(other != key for other, _ in old):
                inner[key] = value
    return edit


def _fits(value: Any, kind: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if isinstance(kind, tuple):
        return isinstance(value, str) and value in kind
    if isinstance(kind, dict) or kind == "mapping":
        return isinstance(value, dict)
    return {"bool": isinstance(value, bool), "number": number, "whole": number and value == math.floor(value) if number else False,
            "text": isinstance(value, str), "list": isinstance(value, list), "any": True}[kind]


def _misfit(path: Path, value: Any, kind: Any) -> Raw:
    if isinstance(kind, tuple):
        return Raw("DZ102", path, f"cannot be {_show(value)}", did_you_mean(value, list(kind)))
    words = "a mapping of keys" if isinstance(kind, dict) else {
        "bool": "true or false", "whole": "a whole number", "number": "a number", "text": "text", "list": "a list",
        "mapping": "a mapping of keys"}[kind]
    meant = _meant(value, kind)
    if meant is None:
        return Raw("DZ102", path, f"must be {words}, not {_show(value)}", f"write {words} there, or remove the key")
    shown = json.dumps(meant) if isinstance(meant, (bool, int)) else f"{meant:.6e}" if abs(meant) < 1e-3 else str(meant)
    return Raw("DZ102", path, f"must be {words}, not the text {_show(value)}", f"write {shown}, without quotes (YAML takes 1e-5 for text, "
               "and 1.0e-5 for a number)", replacement(path, path[-1], meant))


def _meant(value: Any, kind: Any) -> Any:
    """What a quoted value says without its quotes, where that fits `kind`; else None."""
    if not isinstance(value, str) or kind not in ("bool", "whole", "number") or len(value) > 40:
        return None
    try:
        meant = {"true": True, "false": False}[value.lower()] if kind == "bool" else float(value)
    except (KeyError, ValueError):
        return None
    if kind != "bool" and _fits(meant, "whole") and "e" not in value.lower():
        meant = int(meant)
    return meant if _fits(meant, kind) else None


def _show(value: Any) -> str:
    text = json.dumps(value, default=str) if isinstance(value, (dict, list, bool, str, type(None))) and _plain(value) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plain(value: Any) -> bool:
    return not isinstance(value, dict) or all(isinstance(key, str) for key in value)


def _walk(values: dict[Any, Any], known: dict[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any, Any]]:
    """(path, value, kind) of each key; the kind is None for one that is not known."""
    for key, value in values.items():
        here = (*path, key)
        kind = known.get(key) if isinstance(key, str) else None
        if kind is None and path == (ZERO,) and key in dskeys.UNPREFIXED:
            kind = dskeys.ZERO[f"stage3_{key}"]
        yield here, value, kind
        if isinstance(kind, dict) and isinstance(value, dict):
            yield from _walk(value, kind, here)


def unknown_key(look: Look) -> Iterator[Raw]:
    for path, value, kind in _walk(look.config, dskeys.CONFIG):
        if kind is not None or path[-1] in ("cpu_offload_params",):
            continue
        known: Any = dskeys.CONFIG
        for part in path[:-1]:
            known = known[part]
        section, hint = dotted(path[:-1]), did_you_mean(path[-1], sorted(known))
        near = hint.startswith("did you mean")
        fix = hint if near else "remove it, or check its spelling and its section against DeepSpeed's reference"
        if section in dskeys.STRICT:
            yield Raw("DZ101", path, f"is not a known key, and DeepSpeed refuses it in {section}", fix)
        else:
            yield Raw("DZ101", path, "is not a known key: DeepSpeed would ignore it without a word", fix,
                      severity="error" if near else "warning")


def wrong_type(look: Look) -> Iterator[Raw]:
    every = [*_walk(look.config, dskeys.CONFIG),
             *_walk(look.section("optimizer", "params"), dskeys.OPTIMIZER_PARAMS, ("optimizer", "params")),
             *_walk(look.section("scheduler", "params"), dskeys.SCHEDULERS.get(look.text("scheduler", "type"), ({},))[0],
                    ("scheduler", "params"))]
    for path, value, kind in every:
        if kind is None or value == "auto" or (value is None and dotted(path) in dskeys.NULLABLE) or _fits(value, kind):
            continue
        yield _misfit(path, value, kind)


def idle_auto(look: Look) -> Iterator[Raw]:
    def every(values: dict[Any, Any], path: Path) -> Iterator[Path]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from every(value, (*path, key))
            elif value == "auto":
                yield (*path, key)

    for path in every(look.config, ()):
        opened = path[0] in ("elasticity", "autotuning", "pipeline", "nebula")
        if not opened and path[-1] not in dskeys.AUTO and dotted(path[-2:]) not in dskeys.AUTO:
            yield Raw("DZ103", path, '"auto" has no meaning here; debzero leaves the key out, and DeepSpeed alone would refuse it',
                      "remove it: DeepSpeed's default holds", removal(*path))


def renamed(look: Look) -> Iterator[Raw]:
    zero = look.section(ZERO)
    pinned = zero.get("cpu_offload_use_pin_memory") is True
    for old, part in (("cpu_offload", "offload_optimizer"), ("cpu_offload_param", "offload_param"), ("cpu_offload_params", "offload_param")):
        if isinstance(zero.get(old), bool):
            now = {"device": "cpu", "pin_memory": True} if pinned else {"device": "cpu"}
            edit = replacement((ZERO, old), part, now) if zero[old] else removal(ZERO, old)
            yield Raw("DZ104", (ZERO, old), f"is the old form of {part}", f'write "{part}": {json.dumps(now)}' if zero[old] else "remove it",
                      edit, "error" if old == "cpu_offload_params" else None)
    olds = {"cpu_offload", "cpu_offload_param", "cpu_offload_params"}
    if "cpu_offload_use_pin_memory" in zero and not olds & set(zero):
        yield Raw("DZ104", (ZERO, "cpu_offload_use_pin_memory"), "is an old form without effect", 'set "pin_memory" within offload_optimizer '
                  "or offload_param", removal(ZERO, "cpu_offload_use_pin_memory"))
    old, now_key = "stage3_gather_fp16_weights_on_model_save", "stage3_gather_16bit_weights_on_model_save"
    if isinstance(zero.get(old), bool):
        yield Raw("DZ104", (ZERO, old), f"is the old name of {now_key}", "rename it", replacement((ZERO, old), now_key, zero[old]))
    if "bfloat16" in look.config and "bf16" not in look.config:
        yield Raw("DZ104", ("bfloat16",), "is the old name of bf16", "rename it", replacement(("bfloat16",), "bf16", look.config["bfloat16"]))


def out_of_range(look: Look) -> Iterator[Raw]:
    least: list[tuple[Path, float]] = [((key,), 1) for key in BATCH]
    least += [((ZERO, key), 1) for key in ("reduce_bucket_size", "allgather_bucket_size", "sub_group_size", "stage3_max_live_parameters")]
    least += [((ZERO, key), 0) for key in ("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold",
                                           "stage3_max_reuse_distance")]
    least += [((ZERO, part, key), 1) for part in ("offload_param", "offload_optimizer") for key in ("buffer_count", "buffer_size")]
    least += [(("aio", key), 1) for key in ("thread_count", "block_size", "queue_depth", "intra_op_parallelism")]
    least += [(("optimizer", "params", key), 0) for key in ("lr", "eps", "weight_decay")]
    least += [(("gradient_clipping",), 0), (("fp16", "loss_scale"), 0), (("fp16", "initial_scale_power"), 0), (("steps_per_print",), 1)]
    for path, bound in least:
        number = look.number(*path)
        if number is not None and number < bound:
            yield Raw("DZ106", path, f"must be at least {bound}, not {number}", f"use {bound} or more, or remove it for the default")
    stage, ratio = look.number(ZERO, "stage"), look.number(ZERO, "offload_optimizer", "ratio")
    if stage is not None and stage not in (0, 1, 2, 3):
        yield Raw("DZ106", (ZERO, "stage"), f"ZeRO has the stages 0, 1, 2 and 3, not {stage}", "2 suits models that fit a GPU, 3 larger ones")
    if ratio is not None and not 0 <= ratio <= 1:
        yield Raw("DZ106", (ZERO, "offload_optimizer", "ratio"), f"is a share from 0 to 1, not {ratio}", "use 1 to offload all of it")


def offload_param(look: Look) -> Iterator[Raw]:
    if look.below(3) and look.device("offload_param"):
        key = "offload_param" if look.text(ZERO, "offload_param", "device") else next(
            key for key in ("cpu_offload_param", "cpu_offload_params") if look.get(ZERO, key) is True)
        yield Raw("DZ110", (ZERO, key), f"needs stage 3 (the stage here is {look.stage}): below it every rank keeps all parameters on its "
                  "GPU, and DeepSpeed ignores this without a word", f"remove it, or set {ZERO}.stage: 3 to have it", removal(ZERO, key))


def nvme(look: Look) -> Iterator[Raw]:
    for part in ("offload_param", "offload_optimizer"):
        if look.device(part) != "nvme":
            continue
        if part == "offload_optimizer" and look.below(3) and not look.below(1):
            yield Raw("DZ111", (ZERO, part, "device"), f"nvme needs stage 3 (the stage here is {look.stage})",
                      f"set device: cpu, or {ZERO}.stage: 3")
        path = look.get(ZERO, part, "nvme_path")
        if not path and not (look.job is not None and look.job.zero.nvme_path):
            yield Raw("DZ112", (ZERO, part, "nvme_path"), "is missing, and device is nvme", "set it to a folder on a local NVMe disk")


def offload_optimizer(look: Look) -> Iterator[Raw]:
    if look.below(1) and look.device("offload_optimizer"):
        yield Raw("DZ113", (ZERO, "offload_optimizer"), "needs stage 1, 2 or 3 (the stage here is 0)", f"set {ZERO}.stage: 2, or remove it")
    ratio = look.number(ZERO, "offload_optimizer", "ratio")
    if look.below(3) and ratio is not None and 0 <= ratio < 1:
        yield Raw("DZ114", (ZERO, "offload_optimizer", "ratio"), f"needs stage 3 (the stage here is {look.stage}); below it all is offloaded",
                  "remove it, or set stage: 3", removal(ZERO, "offload_optimizer", "ratio"))


def stage_3(look: Look) -> Iterator[Raw]:
    zero, gather = look.section(ZERO), "stage3_gather_16bit_weights_on_model_save"
    if look.below(3):
        for key in zero:
            if isinstance(key, str) and key.startswith("stage3_") and key in dskeys.ZERO:
                yield Raw("DZ115", (ZERO, key), f"has no effect at stage {look.stage}", "remove it, or set stage: 3", removal(ZERO, key))
    asked = any(zero.get(key) is True for key in (gather, "gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save"))
    # Within a job whose JSON does not say, debzero sets it.
    if look.stage == 3 and not asked and (look.job is None or zero.get(gather) is False):
        yield Raw("DZ116", (ZERO, gather), "is not set: DeepSpeed's save_16bit_model would write nothing (debzero gathers the weights itself)",
                  "set it to true if anything else loads this file")
    if look.section("pipeline") and not look.below(2) and look.stage is not None:
        yield Raw("DZ117", ("pipeline",), f"pipeline parallelism does not go with stage {look.stage}", f"set {ZERO}.stage: 1, or remove it")
    if look.get(ZERO, "overlap_comm") is True and look.ranks and look.gpus and look.ranks > look.gpus and look.stage:
        yield Raw("DZ118", (ZERO, "overlap_comm"), f"hangs where ranks share a GPU ({look.ranks} ranks, {look.gpus} GPUs)",
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
    parts = [(number, words) for number, words in ((micro, "samples a micro-batch"), (steps, "accumulation steps"), (look.ranks, "ranks"))
             if number is not None]
    product = math.prod(number for number, _ in parts)
    exact = micro is not None and steps is not None and look.ranks is not None
    if total % product if not exact else total != product:
        shown = " x ".join(f"{number} {words}" for number, words in parts)
        nearest = product if exact else max(1, round(total / product)) * product
        reason = f"{total} is not {shown} = {product}" if exact else f"{total} is no multiple of {shown} = {product}"
        unknown = "" if look.ranks is not None else ", whatever the number of ranks"
        also = " or remove gradient_accumulation_steps, if that divides" if exact and micro and total % (micro * (look.ranks or 1)) == 0 else ""
        yield Raw("DZ120", (BATCH[0],), reason + unknown, f"set it to {nearest},{also or ' or change the others'}")


def precision(look: Look) -> Iterator[Raw]:
    halves = [name for name in ("fp16", "bf16", "bfloat16") if look.get(name, "enabled") is True]
    if "fp16" in halves and len(halves) > 1:
        yield Raw("DZ130", (halves[1], "enabled"), "is true, and fp16.enabled too", "keep bf16 on GPUs since Ampere, fp16 on older ones")
    if look.get("fp16", "enabled") is not True:
        return
    power, scale = look.number("fp16", "initial_scale_power"), look.number("fp16", "loss_scale")
    if scale is not None and scale > 0:
        yield Raw("DZ132", ("fp16", "loss_scale"), f"fixes the scale at {scale}: steps that overflow are skipped to the end",
                  "set 0, which adapts it", replacement(("fp16", "loss_scale"), "loss_scale", 0))
    elif power is not None and power > 12:
        yield Raw("DZ131", ("fp16", "initial_scale_power"), f"a first scale of 2^{power:g} overflows, and each overflow skips a step",
                  "set 12, or remove it: debzero sets 12")


def optimizer(look: Look) -> Iterator[Raw]:
    params, kind, path = look.section("optimizer", "params"), look.text("optimizer", "type"), ("optimizer", "type")
    if "max_grad_norm" in params:
        def move(config: dict[str, Any]) -> None:
            value = config["optimizer"]["params"].pop("max_grad_norm")
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                config.setdefault("gradient_clipping", value)
        yield Raw("DZ140", ("optimizer", "params", "max_grad_norm"), "DeepSpeed refuses it there", "use gradient_clipping at the top level", move)
    known = look.optimizer in {name.lower() for name in dskeys.OPTIMIZERS} or kind in dskeys.TORCH_OPTIMIZERS
    if kind and not known:
        yield Raw("DZ141", path, f"{kind!r} is no optimizer of DeepSpeed or torch", did_you_mean(kind, [*dskeys.OPTIMIZERS, *dskeys.TORCH_OPTIMIZERS]))
    elif kind and not look.below(1) and look.optimizer in dskeys.ONE_BIT:
        yield Raw("DZ142", path, f"{kind} does not go with ZeRO, whatever its stage", "use AdamW, or stage 0")
    elif kind and not look.below(1) and look.optimizer not in dskeys.TESTED and look.get("zero_allow_untested_optimizer") is not True:
        yield Raw("DZ142", path, f"ZeRO was not tried with {kind}, and DeepSpeed refuses it", "use AdamW, or set zero_allow_untested_optimizer: true")
    if look.device("offload_optimizer"):
        if params.get("torch_adam") is True:
            yield Raw("DZ143", ("optimizer", "params", "torch_adam"), "torch's Adam is several times slower on the CPU than DeepSpeed's",
                      "remove it", removal("optimizer", "params", "torch_adam"))
        if look.get("zero_force_ds_cpu_optimizer") is False:
            yield Raw("DZ143", ("zero_force_ds_cpu_optimizer",), "is for optimizers that a program makes; the one of this file is DeepSpeed's",
                      "remove it", removal("zero_force_ds_cpu_optimizer"))


def scheduler(look: Look) -> Iterator[Raw]:
    kind, params, path = look.text("scheduler", "type"), look.section("scheduler", "params"), ("scheduler", "params")
    if kind and kind not in dskeys.SCHEDULERS:
        yield Raw("DZ144", ("scheduler", "type"), f"{kind!r} is no schedule of DeepSpeed", did_you_mean(kind, list(dskeys.SCHEDULERS)))
        return
    known, needed = dskeys.SCHEDULERS.get(kind, ({}, ()))
    for key in needed:
        if key not in params:
            yield Raw("DZ145", (*path, key), f"is missing, and {kind} needs it", 'add it (with debzero, "auto" fits where it is known)')
    for key in params:
        if known and key not in known:
            yield Raw("DZ145", (*path, key), f"is no parameter of {kind}", did_you_mean(key, sorted(known)))
    warmup, total = look.number(*path, "warmup_num_steps"), look.number(*path, "total_num_steps")
    if warmup is not None and total is not None and warmup > total:
        yield Raw("DZ146", (*path, "warmup_num_steps"), f"{warmup} steps of warm-up are more than the {total} in all: the rate never falls",
                  f"use about {max(1, round(total / 10))}")


def universal(look: Look) -> Iterator[Raw]:
    if look.get("checkpoint", "load_universal") is True:
        yield Raw("DZ150", ("checkpoint", "load_universal"), "a first start then looks for a checkpoint that is not there; debzero sets it "
                  "itself when the number of ranks changed", "remove it", removal("checkpoint", "load_universal"))


RULES = (unknown_key, wrong_type, idle_auto, renamed, out_of_range, offload_param, nvme, offload_optimizer, stage_3, batch, precision,
         optimizer, scheduler, universal)


def dotted(path: Path) -> str:
    return ".".join(map(str, path))


def lint(config: dict[str, Any], file: str, ranks: Optional[int] = None, gpus: Optional[int] = None, job: Optional[Job] = None,
         prefix: str = "") -> list[Finding]:
    """All findings, in the order of RULES. `job`: the one that the configuration belongs to, whose zero section counts too."""
    look, found = Look(config, ranks, gpus, job), []
    for rule in RULES:
        for raw in rule(look):
            severity: Literal["error", "warning"] = raw.severity or ("warning" if raw.code in WARNINGS else "error")
            problem = Problem(file, prefix + dotted(raw.path), raw.reason, raw.fix, raw.code, severity)
            found.append(Finding(problem, raw.edit, f"{dotted(raw.path)}: {CODES[raw.code]} ({raw.code}), mended"))
    return found


def problems(config: dict[str, Any], file: str, ranks: Optional[int], gpus: Optional[int], job: Optional[Job] = None) -> list[Problem]:
    """The problems alone. Of a job's configuration, they are placed in the file that the lines stand in."""
    if job is not None and isinstance(job.deepspeed, str):
        file = job.deepspeed
    inline = job is not None and isinstance(job.deepspeed, dict)
    return [finding.problem for finding in lint(config, file, ranks, gpus, job, "deepspeed." if inline else "")]


def mend(config: dict[str, Any], job: Optional[Job] = None) -> tuple[dict[str, Any], list[str]]:
    """The configuration with every change that can be made safely, and those changes in words."""
    config, changes = copy.deepcopy(config), []
    while True:
        before = json.dumps(config, default=str)
        for finding in lint(config, "", job=job):
            if finding.edit is None:
                continue
            finding.edit(config)
            if json.dumps(config, default=str) != before:
                changes.append(finding.change)
                break
        else:
            return config, changes
