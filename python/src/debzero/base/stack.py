"""stack.yml: the versions and paths that the plays, the Debian package and this package share."""
from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

_package = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Stack:
    """The versions and paths, under the names that they have in the file, which says what they mean."""

    python: str
    cuda: str
    cuda_home: str
    cudnn: str
    torch: str
    deepspeed: str
    deepspeed_sha256: str
    deepspeed_ops: list[str]
    tensorrt: str
    gpu_architectures: list[str]
    runtime: str
    prefix: str
    venv: str
    tensorrt_venv: str
    config: str
    state: str
    cache: str
    user: str
    predict_user: str
    predict_group: str
    predict_state: str
    watchdog_seconds: int


@cache
def stack() -> Stack:
    """stack.yml. Installed, the file lies in /usr/share/debzero; in a checkout, in the root."""
    import yaml

    installed, checkout = _package.parent / "stack.yml", _package.parents[2] / "stack.yml"
    return Stack(**yaml.safe_load((installed if installed.is_file() else checkout).read_text())["stack"])


def jobs_folder() -> Path:
    """Where job files are looked up by name: the host's own, or in a checkout that is not installed debian/jobs."""
    host, checkout = Path(stack().config, "jobs"), _package.parents[2] / "debian" / "jobs"
    return checkout if checkout.is_dir() else host


def models_folder() -> Path:
    """Where the models are that the prediction services answer with."""
    return Path(stack().predict_state, "models")


def examples_folder() -> Path:
    """The packaged jobs, which administrators copy to jobs_folder()."""
    checkout = _package.parents[2] / "debian" / "jobs"
    return checkout if checkout.is_dir() else _package.parent / "examples"
