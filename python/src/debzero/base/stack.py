"""stack.yml: the versions and paths that the plays, the Debian package and this package share."""
from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

_package = Path(__file__).resolve().parents[1]


@cache
def stack() -> dict[str, Any]:
    """Its `stack` mapping. Installed, the file lies in /usr/share/debzero; in a checkout, in the root."""
    import yaml

    installed, checkout = _package.parent / "stack.yml", _package.parents[2] / "stack.yml"
    values: dict[str, Any] = yaml.safe_load((installed if installed.is_file() else checkout).read_text())["stack"]
    return values


def jobs_folder() -> Path:
    """Where job files are looked up by name: the host's own, or in a checkout that is not installed debian/jobs."""
    host, checkout = Path(stack()["config"], "jobs"), _package.parents[2] / "debian" / "jobs"
    return checkout if checkout.is_dir() else host
