"""Lint rules about faults of certain releases of DeepSpeed. Each says from which release to which it holds.

The sources are DeepSpeed's own pull requests, which are named by their numbers.
"""
from __future__ import annotations

from collections.abc import Iterator

from debzero.deepspeed_json.releases import overlap_breaks_compiled_layers, parsed
from debzero.deepspeed_json.view import ZERO, ConfigView, Violation


def _within(view: ConfigView, first: str, last: str) -> bool:
    return parsed(first) <= parsed(view.releases.deepspeed) <= parsed(last)


def compiled_overlap(view: ConfigView) -> Iterator[Violation]:
    compiled = view.gpus != 0 and (view.job is None or view.job.train.compile == "auto")
    if (compiled and view.get(ZERO, "overlap_comm") is True and view.stage in (1, 2)
            and overlap_breaks_compiled_layers(view.releases)):
        never = "" if view.job is None else ", or train.compile: never"
        yield Violation("DZ160", (ZERO, "overlap_comm"),
                        f"gives NaN with compiled layers at stage {view.stage} in DeepSpeed {view.releases.deepspeed}: "
                        "the reduction does not wait for all of their gradients (fixed in 0.19.3)",
                        f"set it to false{never}", severity="warning" if view.job is None else "error")


def pipeline(view: ConfigView) -> Iterator[Violation]:
    if not view.section("pipeline"):
        return
    release, steps = view.releases.deepspeed, view.number("gradient_accumulation_steps")
    if _within(view, "0.18.3", "0.18.4"):
        yield Violation("DZ160", ("pipeline",), f"pipelines hang in DeepSpeed {release} (fixed in 0.18.5, #7787)",
                        "install another release, or remove it")
    elif _within(view, "0.18.5", "0.19.2") and (steps is None or steps > 1):
        yield Violation("DZ160", ("pipeline",), f"in DeepSpeed {release} all stages but the last divide their "
                        "gradients too often by gradient_accumulation_steps (fixed in 0.19.3, #8154)",
                        "install another release, or remove it")


def slow_hooks(view: ConfigView) -> Iterator[Violation]:
    """Every gradient hook counts the hooks of all parameters (#7886)."""
    if _within(view, "0.18.5", "0.18.6") and view.stage:
        yield Violation("DZ160", (ZERO, "stage") if view.stage_key != "zero.stage" else ("zero", "stage"),
                        f"with ZeRO a step takes up to 2.5 times as long in DeepSpeed {view.releases.deepspeed} as in "
                        "other releases (fixed in 0.18.7)", "install another release",
                        in_job=view.stage_key == "zero.stage")


RULES = (compiled_overlap, pipeline, slow_hooks)
