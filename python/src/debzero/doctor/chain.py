"""The chain: checks in the order of cause and effect. What follows from a failure is skipped, so the first failing line is the cause."""
from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

from debzero.doctor.host import Asked, Finding, Host, examine


def ok(found: str, **data: Any) -> Finding:
    return Finding("", "ok", found, data=data or None)


def skip(found: str) -> Finding:
    return Finding("", "skip", found)


def warn(found: str, advice: str, **data: Any) -> Finding:
    return Finding("", "warn", found, advice, data or None)


def fail(found: str, advice: str, **data: Any) -> Finding:
    return Finding("", "fail", found, advice, data or None)


@dataclass
class Context:
    """What the checks are told, and what those before them found."""

    host: Host
    asked: Asked
    stack: dict[str, Any]
    fast: bool = False
    nvme: Optional[Path] = None
    findings: dict[str, Finding] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)  # what one check learnt and others need; not shown

    @property
    def on_gpus(self) -> bool:
        """Whether this host is to compute on GPUs."""
        return self.findings["gpu"].status != "skip"

    @property
    def cuda_home(self) -> Path:
        """Where torch and DeepSpeed look for the CUDA compiler."""
        return Path(os.environ.get("CUDA_HOME") or self.stack["cuda_home"])


class Check(NamedTuple):
    """One link. It makes no sense without those that it `needs`; those that come `after` may lack a GPU, but not be broken."""

    name: str
    run: Callable[[Context], Finding]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    slow: bool = False  # left out with --fast
    seconds: int = 0    # its time limit, where it has a long one: shown while it runs


def obstacle(check: Check, findings: dict[str, Finding]) -> str:
    """Why `check` makes no sense after these findings; empty when it does. What was skipped hands on its own reason."""
    for name in check.needs + check.after:
        found = findings.get(name)
        if found and found.status == "fail":
            return f"because of {name}"
        if found and found.status == "skip" and (name in check.needs or found.found.startswith("because of")):
            return found.found
    return ""


def _defect(error: Exception) -> Finding:
    return fail(f"the check itself failed: {type(error).__name__}: {error}", "please report this: it is a defect of debzero")


def below(context: Context) -> None:
    """Add the findings of host.py: from the machine up to a driver that answers."""
    try:
        findings = {finding.check: finding for finding in examine(context.host, context.asked)}
    except Exception as error:
        findings = {"host": _defect(error)._replace(check="host"), "gpu": skip("because of host")._replace(check="gpu")}
    gpu = findings["gpu"]
    if gpu.status == "skip":  # the reason, where host.py names only the check that has it
        findings = {name: finding._replace(found=gpu.found) if finding.status == "skip" else finding for name, finding in findings.items()}
    context.findings.update(findings)


def follow(checks: Iterable[Check], context: Context, announce: Callable[[Check], None]) -> None:
    """Run the checks in order; the context then holds a finding for each. A defect of a check is a finding, too."""
    for check in checks:
        if check.slow and context.fast:
            continue
        reason = obstacle(check, context.findings)
        if reason:
            context.findings[check.name] = Finding(check.name, "skip", reason)
            continue
        announce(check)
        try:
            finding = check.run(context)
        except Exception as error:
            finding = _defect(error)
        context.findings[check.name] = finding._replace(check=check.name)
