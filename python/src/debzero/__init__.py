"""debzero: fine-tunes Transformers with DeepSpeed ZeRO on Debian hosts."""
from __future__ import annotations

import re
from pathlib import Path

_here = Path(__file__).resolve().parent


def _version() -> str:
    """The Debian package's version: stamped beside this file when installed, else the changelog's in a checkout."""
    stamp = _here / "_version"
    if stamp.is_file():
        return stamp.read_text().strip()
    changelog = _here.parents[2] / "debian" / "changelog"
    entry = re.match(r"\S+ \(([^)]+)\)", changelog.read_text()) if changelog.is_file() else None
    return entry[1] if entry else "unknown"


__version__ = _version()
