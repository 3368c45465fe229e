"""The Python environment with torch and DeepSpeed: whether this process has it, and what to do where it has not."""
from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from debzero.base.operators import RUNTIME
from debzero.base.stack import stack


def is_here() -> bool:
    return importlib.util.find_spec("torch") is not None


def missing() -> tuple[str, str]:
    """What is missing, and the one command that installs it: Ansible's where Ansible had made it from the lock."""
    pins = stack()
    if Path(pins.venv, "bin/python").exists():
        return f"torch is not installed in {sys.prefix}", RUNTIME
    return (f"{pins.venv} is missing, the Python environment with torch {pins.torch} and DeepSpeed {pins.deepspeed}",
            RUNTIME if Path(pins.prefix, "requirements.lock").exists() else "apt install debzero-runtime")


def find_own_programs() -> None:
    """Programs that a virtual environment brings are found without its activation, after the system's own: torch runs
    ninja to compile an operator."""
    own = os.path.join(sys.prefix, "bin")
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if sys.prefix != sys.base_prefix and own not in folders:
        os.environ["PATH"] = os.pathsep.join([*folders, own])
