"""Files that this process may believe: regular ones, its own user's, that nobody else may write to.

Whoever may write to a checkpoint decides what the run continues with, so what another user could have put there is not
read. No link is followed on the last part of a path, and neither a FIFO nor a device can hold the reader up.
"""
from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from debzero.base.reading import open_regular
from debzero.base.text import printable

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class ForeignFileError(Exception):
    """What is at a path is not this user's own; says why."""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file `path`, to read. Raises a ForeignFileError, or an OSError where there is none."""
    require_own(os.lstat(path), path)  # opening a device may already do something
    with open_regular(path, own=True) as file:
        require_own(os.fstat(file.fileno()), path)  # what was opened may be another file than what was looked at
        yield file


def read(path: Path, limit_bytes: int) -> bytes:
    """What is in the file, which is a fault (ForeignFileError) where it is longer than `limit_bytes`."""
    with opened(path) as file:
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise ForeignFileError(f"{printable(path.name)} is larger than {limit_bytes} bytes")
    return content


def walk(folder: Path) -> Iterator[tuple[str, int]]:
    """The relative name and bytes of each file in `folder` and below, in no order. Raises a ForeignFileError where
    anything in it, or the folder itself, is not this user's own."""
    require_own(os.lstat(folder), folder, folders=True)
    folders = [""]
    while folders:  # no recursion: a disk's damage may be deep
        above = folders.pop()
        with os.scandir(folder / above) as entries:
            for entry in entries:
                name, info = os.path.join(above, entry.name), entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    require_own(info, Path(name), folders=True)
                    folders.append(name)
                else:
                    require_own(info, Path(name))
                    yield name, info.st_size


def require_own(info: os.stat_result, path: Path, folders: bool = False) -> None:
    """Raises a ForeignFileError unless `info`, of `path`, is that of a regular file (or of a folder) that belongs to
    this user and to which nobody else may write."""
    name = printable(path.name)
    if not (stat.S_ISDIR if folders else stat.S_ISREG)(info.st_mode):
        raise ForeignFileError(f"{name} is no {'folder' if folders else 'regular file'}")
    if info.st_uid != os.geteuid():
        raise ForeignFileError(f"{name} belongs to {_name(info.st_uid)}, not to {_name(os.geteuid())}, "
                               "who would load it")
    if info.st_mode & OTHERS_WRITE:
        raise ForeignFileError(f"{name} may be written to by other users (chmod go-w)")


def close_to_others(folder: Path) -> None:
    """Take from other users the right to write to what is in `folder`, which this process has just made."""
    for path in [folder, *folder.rglob("*")]:
        mode = path.stat().st_mode
        if mode & OTHERS_WRITE:
            path.chmod(stat.S_IMODE(mode) & ~OTHERS_WRITE)


def _name(user: int) -> str:
    try:
        return f"the user {pwd.getpwuid(user).pw_name}"
    except KeyError:
        return f"the user {user}"
