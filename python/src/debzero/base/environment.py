"""Every environment variable named DEBZERO_*. They are read here and nowhere else; who starts a run's processes writes
them with Environment.variables()."""
from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from debzero.base.errors import InputError, Problem


@dataclass(frozen=True)
class Environment:
    """The variables' values; None where one is unset."""

    gpus: Optional[int] = None               # GPUs that this host must have; usually set in host.env
    launcher_pid: Optional[int] = None       # the process that started this rank and holds the output folder
    measured: bool = False                   # bench and tune measure the run's steps: no evaluation, nothing saved
    memory_cap_bytes: Optional[int] = None   # for each rank: of its GPU's memory, or of host memory beside its code
    micro_batch: Optional[int] = None        # samples; the launcher's decision for its ranks
    favour: Optional[str] = None             # memory or speed, for DeepSpeed's buffers; as above
    meeting_folder: Optional[Path] = None    # the launcher's, private to this start: where its ranks meet
    watchdog_seconds: Optional[int] = None   # without progress, outside systemd; 0: for ever
    cluster_file: Optional[Path] = None      # which names the hosts of the job
    textfile_folder: Optional[Path] = None   # node_exporter's, for a copy of the run's Prometheus textfile

    def variables(self) -> dict[str, str]:
        """As variables for a child process: those that are set."""
        values = {field: getattr(self, field) for field in NAMES}
        return {NAMES[field]: "1" if value is True else str(value) for field, value in values.items()
                if value not in (None, False)}


NAMES = {"gpus": "DEBZERO_GPUS", "launcher_pid": "DEBZERO_LAUNCHER", "measured": "DEBZERO_MEASURED",
         "memory_cap_bytes": "DEBZERO_MEMORY_CAP", "micro_batch": "DEBZERO_MICRO_BATCH", "favour": "DEBZERO_FAVOUR",
         "watchdog_seconds": "DEBZERO_WATCHDOG", "textfile_folder": "DEBZERO_TEXTFILE_DIR",
         "meeting_folder": "DEBZERO_MEETING", "cluster_file": "DEBZERO_CLUSTER"}


FIX = "correct it there, or in the environment"
DIGITS = 20  # more than any of the numbers can have


def environment(variables: Optional[Mapping[str, str]] = None, source: str = "the environment") -> Environment:
    """The values in `variables` (default: this process's); errors name `source` as their file. Raises an InputError
    with a problem for each value that cannot be meant."""
    given = os.environ if variables is None else variables
    numbers: dict[str, Any] = {}
    problems = []
    for field in ("gpus", "launcher_pid", "memory_cap_bytes", "micro_batch", "watchdog_seconds"):
        text = given.get(NAMES[field]) or None
        if text is not None and not (text.isdecimal() and len(text) < DIGITS):
            problems.append(Problem(source, NAMES[field], f"must be a whole number, not {text[:DIGITS]!r}", FIX))
            text = None
        numbers[field] = None if text is None else int(text)
    measured = given.get(NAMES["measured"]) or "0"
    if measured not in ("0", "1"):
        problems.append(Problem(source, NAMES["measured"], f"must be 0 or 1, not {measured[:DIGITS]!r}", FIX))
    favour = given.get(NAMES["favour"]) or None
    if favour is not None and favour not in ("memory", "speed"):
        problems.append(Problem(source, NAMES["favour"], f"must be memory or speed, not {favour[:DIGITS]!r}", FIX))
    if problems:
        raise InputError(problems)
    paths: dict[str, Any] = {field: Path(path) for field in ("meeting_folder", "textfile_folder", "cluster_file")
                             if (path := given.get(NAMES[field]))}
    return Environment(**numbers, measured=measured == "1", favour=favour, **paths)
