"""What `debzero plan` says each configuration will take, to be shown beside what it took."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

LIMIT = 300  # seconds; a plan takes some


def predictions(job: Path) -> list[dict[str, Any]]:
    """The choices of `debzero plan --json` for a job file; none where it cannot tell. In a process of its own: what it holds of the
    model's shapes is gone when the runs begin."""
    try:
        done = subprocess.run([sys.executable, "-m", "debzero", "plan", str(job), "--json"], capture_output=True,
                              text=True, timeout=LIMIT)
        choices = json.loads(done.stdout)["choices"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return []
    return choices if isinstance(choices, list) else []


def prediction(choices: list[dict[str, Any]], row: dict[str, Any]) -> Optional[dict[str, Any]]:
    """One row's: the allocator's peak on one rank, and what it is made of, in bytes."""
    keys = ("stage", "offload_optimizer", "offload_param")
    for choice in choices:
        if all(choice[key] == row[key] for key in keys):
            return {"total_bytes": choice["peak_bytes"], "parts": choice["parts"]}
    return None
