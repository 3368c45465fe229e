"""`debzero doctor`: run all checks, then print a table or JSON. Exit code 0: this host can train; 1: it cannot."""
from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

from debzero import __version__
from debzero.base import privileges, systemd
from debzero.base.command_line import Commands, add_command, add_json, count
from debzero.base.environment import environment
from debzero.base.stack import stack
from debzero.base.text import printable
from debzero.doctor import software, trials
from debzero.doctor.chain import Check, Context, examine_host, run_checks
from debzero.doctor.host_check import CheckResult, Requirements
from debzero.doctor.probe import HostProbe

FREE_MB = 1024  # in the state and the cache folder; what a job needs is for `debzero check` to say
WIDEST = 140
# What is installed stays as it is until somebody installs something else; a driver or a disk may recover.
LASTING = ("environment", "compiler", "torch", "processor", "deepspeed", "operators")
VERDICT = "This host {} train"  # can, or cannot


def first_failure(results: Iterable[CheckResult]) -> Optional[CheckResult]:
    """The root cause, where there is one."""
    return next((result for result in results if result.status == "fail"), None)


def as_json(context: Context) -> dict[str, Any]:
    """What --json prints. Versions are those found; None for what is not there."""
    results = context.results
    facts = {name: result.data or {} for name, result in results.items()}
    torch = facts.get("torch", {})
    smi = facts.get("nvidia-smi", {}).get("gpus") or []
    return {
        "ok": first_failure(results.values()) is None,
        "findings": [result._asdict() for result in results.values()],
        "host": {"name": platform.node(), "kernel": context.probe.kernel, "gpus": [gpu["name"] for gpu in smi]},
        "versions": {
            "debzero": __version__, "python": platform.python_version(), "driver": context.probe.loaded_version or None,
            "compiler": facts.get("compiler", {}).get("release"), "torch": torch.get("version"),
            "cuda": torch.get("cuda"), "nccl": ".".join(map(str, torch.get("nccl") or [])) or None,
            "deepspeed": facts.get("deepspeed", {}).get("version"),
            "pinned": {key: getattr(context.stack, key) for key in ("python", "cuda", "cudnn", "torch", "deepspeed")}}}


def as_text(results: Iterable[CheckResult], width: int, verdict: str = VERDICT) -> str:
    """A line for each result, with its advice below it, and one for each reason to skip some; last, the cause."""
    results = list(results)
    column = max(len(result.check) for result in results) + 2
    pad = " " * (column + 6)
    lines: list[str] = []

    def add(text: str, first: str, others: str) -> None:
        lines.extend(textwrap.wrap(text, width, initial_indent=first, subsequent_indent=others, break_long_words=False,
                                   break_on_hyphens=False))

    for result in results:
        if result.status != "skip":
            add(result.found, f"{result.check:<{column}}{result.status:<6}", pad)
            if result.advice:
                add(result.advice, f"{pad}-> ", f"{pad}   ")
    for reason in dict.fromkeys(result.found for result in results if result.status == "skip"):
        skipped = ", ".join(one.check for one in results if (one.status, one.found) == ("skip", reason))
        add(f"{reason}: {skipped}", f"{'':<{column}}skip  ", pad)
    cause = first_failure(results)
    counts = ", ".join(f"{sum(result.status == status for result in results)} {status}"
                       for status in ("ok", "warn", "fail", "skip"))
    end = [f"{verdict.format('can')} ({counts})."] if cause is None else [
        f"{verdict.format('cannot')} ({counts}). First cause: {cause.check}: {cause.found}", f"-> {cause.advice}"]
    return "\n".join(map(printable, [*lines, "", *end]))


def _announce(check: Check) -> None:
    """A line that the next one overwrites: what runs now, and how long at most."""
    limit = f" (at most {check.seconds} s)" if check.seconds else ""
    print(f"\r\033[Kchecking {check.name}{limit} ...", end="", file=sys.stderr, flush=True)


def _settings(file: Path) -> int:
    """Set the variables of host.env that are not set: systemd and login shells set them, sudo and Ansible do not.

    Return how many GPUs it requires.
    """
    for name, value in re.findall(r"^(\w+)=(.*)$", file.read_text() if file.is_file() else "", re.MULTILINE):
        os.environ.setdefault(name, value.strip("\"' "))
    return environment(source=str(file)).gpus or 0


def add_doctor(commands: Commands) -> None:
    parser = add_command(
        commands, "doctor", run,
        "Examine this host, from its GPUs to a training step of two ranks. The first failing line is the cause, "
        "with what to do about it; what depends on it is skipped. Nothing is changed or left behind.",
        ["debzero doctor", "debzero doctor --fast --gpus 2", "debzero doctor --nvme /data --json",
         "debzero doctor --job demo"])
    parser.add_argument("--fast", action="store_true",
                        help="leave out what takes long: NCCL, the hub, NVMe speed, the training step")
    parser.add_argument("--gpus", type=count, metavar="N",
                        help="GPUs that must be present (default: $DEBZERO_GPUS, else however many are found)")
    parser.add_argument("--job", metavar="NAME",
                        help="examine the way between the hosts that train this job together instead; to be run on all "
                             "of them at the same time")
    parser.add_argument("--nvme", type=Path, metavar="PATH", help="also test this folder as an offload path")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    if options.job is not None:
        return between_hosts(options.job, options.json)
    return doctor(options.gpus, options.fast, options.nvme, options.json)


def between_hosts(job: str, json_wanted: bool) -> int:
    """The exit code, after printing what was found between the hosts of a job."""
    from debzero.doctor import between

    privileges.become_owner()
    links = between.of_job(job)
    context = Context(HostProbe(), Requirements(), stack())
    try:
        run_checks(links.checks(), context, _announce if sys.stderr.isatty() else lambda check: None)
    finally:
        links.close()
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    return _show(context, json_wanted, f"{links.cluster.host} {{}} train with the other hosts")


def for_a_job() -> int:
    """What a job's unit asks before it trains: 0, or the job's exit code. What a restart cannot change is 2."""
    context = _examined(None, True, None)
    code = _show(context, False)
    cause = first_failure(context.results.values())
    return 2 if cause and cause.check in LASTING else code


def doctor(gpus: Optional[int], fast: bool, nvme: Optional[Path], json_wanted: bool) -> int:
    return _show(_examined(gpus, fast, nvme), json_wanted)


def _examined(gpus: Optional[int], fast: bool, nvme: Optional[Path]) -> Context:
    """The results of all checks; systemd, where it listens, has the first failure."""
    privileges.become_owner()
    pins = stack()
    expected = _settings(Path(pins.config, "host.env"))
    gpus = expected if gpus is None else gpus
    required = Requirements(gpus=gpus, free_mb={pins.state: FREE_MB, pins.cache: FREE_MB})
    context = Context(HostProbe(), required, pins, fast, nvme)
    terminal = sys.stderr.isatty()
    # So that temporary folders and children go.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        examine_host(context)
        run_checks([*software.CHECKS, *trials.CHECKS], context, _announce if terminal else lambda check: None)
    finally:
        if terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    cause = first_failure(context.results.values())
    if cause is not None:
        systemd.notify(f"STATUS=this host cannot train: {cause.check}: {cause.found} -> {cause.advice}")
    return context


def _show(context: Context, json_wanted: bool, verdict: str = VERDICT) -> int:
    results = context.results.values()
    if json_wanted:
        print(json.dumps(as_json(context), indent=2))
    else:
        print(as_text(results, min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns), verdict))
    return 0 if first_failure(results) is None else 1
