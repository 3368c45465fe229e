"""Every environment variable named DEBZERO_*: read here and nowhere else, and written from here by whoever starts a
run's processes."""
from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from debzero.base.errors import InputError, Problem


@dataclass(frozen=True)
class Environment:
    """The variables' values; None where one is unset."""

    gpus: Optional[int] = None               # GPUs that must be there; of the host's own host.env
    launcher_pid: Optional[int] = None       # the process that started this rank and holds the output folder
    # the run's steps are measured (bench, tune): it neither evaluates nor saves
    measured: bool = False
    memory_cap_bytes: Optional[int] = None   # of its GPU (without one: beside its code) that each rank may take
    micro_batch: Optional[int] = None        # samples; what the launcher has decided for its ranks
    textfile_folder: Optional[Path] = None   # node_exporter's, where a run's Prometheus textfile also goes

    def variables(self) -> dict[str, str]:
        """As variables for a child process: those that are set."""
        values = {field: getattr(self, field) for field in NAMES}
        return {NAMES[field]: "1" if value is True else str(value) for field, value in values.items()
                if value not in (None, False)}


NAMES = {"gpus": "DEBZERO_GPUS", "launcher_pid": "DEBZERO_LAUNCHER", "measured": "DEBZERO_MEASURED",
         "memory_cap_bytes": "DEBZERO_MEMORY_CAP", "micro_batch": "DEBZERO_MICRO_BATCH",
         "textfile_folder": "DEBZERO_TEXTFILE_DIR"}


def environment(variables: Optional[Mapping[str, str]] = None, source: str = "the environment") -> Environment:
    """The values in `variables` (default: this process's), which `source` names in errors. Raises an InputError with every value that
    is no whole number where one is needed."""
    given = os.environ if variables is None else variables
    numbers: dict[str, Optional[int]] = {}
    problems = []
    for field in ("gpus", "launcher_pid", "memory_cap_bytes", "micro_batch"):
        text = given.get(NAMES[field]) or None
        if text is not None and not text.isdecimal():
            problems.append(Problem(source, NAMES[field], f"must be a whole number, not {text!r}",
                                    "correct it there, or in the environment"))
            text = None
        numbers[field] = None if text is None else int(text)
    if problems:
        raise InputError(problems)
    folder = given.get(NAMES["textfile_folder"])
    return Environment(**numbers, measured=bool(given.get(NAMES["measured"])),
                       textfile_folder=Path(folder) if folder else None)
