"""What `debzero plan` says each configuration will take, to be shown beside what it took."""
from __future__ import annotations

import json
import subprocess
from pathlib import Path

from debzero.base import interpreter
from debzero.bench.results import Prediction
from debzero.resolve.sharding import Sharding

LIMIT = 300  # seconds; a plan takes some


def predictions(job: Path, own: Sharding) -> dict[Sharding, Prediction]:
    """Those of `debzero plan` for a job file with the sharding `own`; none where it cannot tell. In a process of its
    own, so that the memory of the model's trace is free again when the runs begin."""
    command = interpreter.command("plan", str(job), "--json")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        return read_plan(done.stdout, own)
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return {}


def read_plan(text: str, own: Sharding) -> dict[Sharding, Prediction]:
    """What `debzero plan --json` printed; of a divided model, its largest stage. Raises ValueError or KeyError where it
    printed no plan."""
    values = json.loads(text)
    if "stages" in values:
        return {own: Prediction(values["peak_bytes"], values["stages"][values["largest_stage"]]["parts"])}
    found = {}
    for row in values["choices"]:
        stage = 0 if row["stage"] == "none" else row["stage"]
        sharding = Sharding(stage, row["offload_optimizer"], row["offload_param"])
        found[sharding] = Prediction(row["peak_bytes"], row["parts"])
    return found
