"""Files that are either whole or not there: written under another name, synced, renamed."""
from __future__ import annotations

import ctypes
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Callable, Optional

from debzero.base import reading

CHUNK = 2**28  # bytes; what a slow disk takes in seconds
LIBC = ctypes.CDLL(None)
SYNC_AND_WAIT = 7  # sync_file_range(2): write what is to be written, and wait for it
RENAME_EXCHANGE = 2  # of renameat2(2)
AT_FDCWD = -100
# A temporary name: hidden, and with a part that nobody can guess, who could put a link of his own there.
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.new")

# Called now and then while something takes long, so that the caller can tell a watchdog that it is alive.
Heartbeat = Callable[[], None]


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path, alive: Heartbeat = lambda: None) -> None:
    """Wait until everything in `folder` is on the disk."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():
            with open(path, "rb") as file:  # piece by piece: fsync alone gives no heartbeat in between
                for start in range(0, os.fstat(file.fileno()).st_size - CHUNK, CHUNK):
                    LIBC.sync_file_range(file.fileno(), ctypes.c_int64(start), ctypes.c_int64(CHUNK), SYNC_AND_WAIT)
                    alive()
        sync(path)
        alive()


def sha256(file: BinaryIO, alive: Heartbeat = lambda: None) -> str:
    """The SHA-256, in hexadecimal, of what is left to read of `file`."""
    digest = hashlib.sha256()
    while block := file.read(2**22):
        digest.update(block)
        alive()
    return digest.hexdigest()


def temporary_name(final: Path) -> Path:
    """A name beside `final`, for what becomes it."""
    return final.with_name(f".{final.name}.{secrets.token_hex(8)}.new")


def remove(path: Path) -> None:
    """Remove whatever is there, if anything: a link itself, never what it names."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what killed processes have left in `folder` under temporary names for `name` (a pattern)."""
    for path in folder.glob(f".{name}.*.new"):
        if TEMPORARY.fullmatch(path.name):
            with suppress(OSError):
                remove(path)


def replace(temporary: Path, final: Path) -> None:
    """Rename, durably."""
    os.replace(temporary, final)
    sync(final.parent)


def replace_folder(temporary: Path, final: Path) -> None:
    """Rename, durably. What is at `final` already is exchanged and then removed, so that there is always a folder
    (except for a moment on file systems that cannot exchange names)."""
    if not os.path.lexists(final):
        replace(temporary, final)
        return
    _exchange(temporary, final)
    sync(final.parent)
    remove(temporary)


def _exchange(one: Path, other: Path) -> None:
    if LIBC.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        # as on NFS
        aside = temporary_name(other)
        os.replace(other, aside)
        os.replace(one, other)
        os.replace(aside, one)


def write_public(path: Path, content: bytes) -> None:
    """Write a file that other users' programs read again and again: whole or not at all, but a crash may lose it."""
    temporary = temporary_name(path)
    try:
        with created(temporary) as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def created(path: Path, mode: int = 0o666) -> BinaryIO:
    """A file that was not there before, open for writing. Raises a FileExistsError where there is one, or a link."""
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode), "wb")


def give_like(file: BinaryIO, like: os.stat_result) -> None:
    """Give an open file the owner and group of `like`, as far as this user may: only root may give files away."""
    for user, group in ((-1, like.st_gid), (like.st_uid, -1)):
        with suppress(OSError):
            os.fchown(file.fileno(), user, group)


def write_bytes(path: Path, content: bytes, like: Optional[os.stat_result] = None) -> None:
    """Write the whole file or nothing. It gets the owner, group and mode of `like`, as far as this user may give files
    away."""
    temporary = temporary_name(path)
    try:
        with created(temporary) as file:
            if like:
                give_like(file, like)
                os.fchmod(file.fileno(), like.st_mode & 0o7777)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Bytes of a file name that are not UTF-8 are written as \\udcff, which JSON reads back as they were."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def rewrite_text(path: Path, text: str) -> None:
    """write_text for a user's file: a link stays a link, and its target keeps its owner, group and mode."""
    path = path.resolve()
    write_bytes(path, text.encode(), path.stat())


def nearest(path: Path) -> Path:
    """`path`, or the nearest of its parents that this user can see."""
    return next(found for found in [path, *path.parents] if os.path.exists(found))


def without_dots(path: Path) -> Path:
    """The absolute path without `..`, unless a link makes that another place."""
    plain = os.path.abspath(path)
    return Path(plain) if os.path.realpath(plain) == os.path.realpath(path) else path.absolute()


def unreadable(path: Path) -> str:
    """Why this user can neither read `path` nor know that it is not there; empty where it can do either."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except PermissionError:
        return "lies in a folder that this user may not enter"
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return "" if os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)) else "may not be read by this user"


def write_json(path: Path, values: Any) -> None:
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, own: bool = False) -> dict[str, Any]:
    """The object in `path`; empty when it is not there, not whole, or no such file as debzero reads. `own`: a file of
    debzero's own, which is never a link."""
    try:
        values = reading.parse_json(reading.read_text(path, reading.STATE, own))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of debzero's own, one per line, without any that a crash left incomplete."""
    parsed = []
    for line in reading.lines_of(path):
        with suppress(ValueError):
            parsed.append(reading.parse_json(line))
    return [values for values in parsed if isinstance(values, dict)]


@contextmanager
def new_folder(final: Path, alive: Heartbeat = lambda: None) -> Iterator[Path]:
    """A temporary folder that becomes `final` when the block succeeds and is removed when it fails."""
    remove_leftovers(final.parent, glob.escape(final.name))
    temporary = temporary_name(final)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync_tree(temporary, alive)
        replace_folder(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
