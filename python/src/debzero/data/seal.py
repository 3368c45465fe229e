"""The digests of what is in a folder, so that a later run can tell whether it is as it was written."""
from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from debzero.base import own_files
from debzero.base.files import sha256, write_json

SEAL = "files.json"
LIMIT = 2**20  # bytes of it


def seal(folder: Path) -> None:
    """Note what is in `folder`, which is finished."""
    write_json(folder / SEAL, _digests(folder))


def is_intact(folder: Path) -> bool:
    """Whether all in `folder` is this user's own, and as it was when it was sealed. Reads all of it."""
    with suppress(OSError, ValueError, RecursionError, own_files.ForeignFileError):
        return bool(json.loads(own_files.read(folder / SEAL, LIMIT)) == _digests(folder))
    return False


def _digests(folder: Path) -> dict[str, str]:
    """{relative name: SHA-256} of every other file."""
    names = sorted(name for name, _ in own_files.walk(folder) if name != SEAL)
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(lambda name: _sha256(folder / name), names)))


def _sha256(path: Path) -> str:
    with own_files.opened(path) as file:
        return sha256(file)
