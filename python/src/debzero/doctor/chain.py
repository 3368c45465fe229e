"""The chain: checks in the order of cause and effect. What depends on a failure is skipped: the first is the cause."""
from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

from debzero.base.stack import Stack
from debzero.doctor.host import examine
from debzero.doctor.host_check import CheckResult, Requirements, fail, skip
from debzero.doctor.probe import HostProbe


@dataclass
class Context:
    """What each check gets: the host, the command's options, and the results of the checks before it."""

    probe: HostProbe
    required: Requirements
    stack: Stack
    fast: bool = False
    nvme: Optional[Path] = None
    results: dict[str, CheckResult] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)  # what one check learnt and others need; not shown

    @property
    def on_gpus(self) -> bool:
        """Whether this host is to compute on GPUs."""
        return self.results["gpu"].status != "skip"

    @property
    def cuda_home(self) -> Path:
        """Where torch and DeepSpeed look for the CUDA compiler."""
        return Path(os.environ.get("CUDA_HOME") or self.stack.cuda_home)


class Check(NamedTuple):
    """One link. What it `needs` must work; what it comes `after` may be skipped for lack of a GPU, not broken."""

    name: str
    run: Callable[[Context], CheckResult]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    slow: bool = False  # left out with --fast
    seconds: int = 0    # its time limit, where it has a long one: shown while it runs


def reason_to_skip(check: Check, results: dict[str, CheckResult]) -> str:
    """Why `check` makes no sense after these results; empty when it does. A skipped check passes its own reason on."""
    for name in check.needs + check.after:
        result = results.get(name)
        if result and result.status == "fail":
            return f"because of {name}"
        if result and result.status == "skip" and (name in check.needs or result.found.startswith("because of")):
            return result.found
    return ""


def _defect(error: Exception) -> CheckResult:
    return fail(f"the check itself failed: {type(error).__name__}: {error}",
                "please report this: it is a defect of debzero")


def examine_host(context: Context) -> None:
    """Add the results of host.py: from the machine up to a driver that answers."""
    try:
        results = {result.check: result for result in examine(context.probe, context.required)}
    except Exception as error:
        results = {"host": _defect(error)._replace(check="host"), "gpu": skip("because of host")._replace(check="gpu")}
    gpu = results["gpu"]
    if gpu.status == "skip":  # the reason, where host.py names only the check that has it
        results = {name: result._replace(found=gpu.found) if result.status == "skip" else result
                   for name, result in results.items()}
    context.results.update(results)


def run_checks(checks: Iterable[Check], context: Context, announce: Callable[[Check], None]) -> None:
    """Run the checks in order; the context then holds a result for each. A defect of a check is a result, too."""
    for check in checks:
        if check.slow and context.fast:
            continue
        reason = reason_to_skip(check, context.results)
        if reason:
            context.results[check.name] = CheckResult(check.name, "skip", reason)
            continue
        announce(check)
        try:
            result = check.run(context)
        except Exception as error:
            result = _defect(error)
        context.results[check.name] = result._replace(check=check.name)
