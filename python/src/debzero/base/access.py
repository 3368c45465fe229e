"""What users beside root may do with a file or a folder, by its mode and its access control lists.

Where there is a list, the mode's bits of the group are its mask, and say nothing about who is on it. New files take
theirs from the folder's default list, whatever the umask is.
"""
from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import Optional

READ, WRITE, ENTER = 4, 2, 1
# Linux's format of a list: a version, then entries of a tag, the rights and a user's or group's number.
VERSION_BYTES = 4
ENTRY = struct.Struct("<HHI")
NAMED_USER, OWN_GROUP, NAMED_GROUP, MASK, EVERYBODY = 2, 4, 8, 16, 32


def of_others(path: Path, state: os.stat_result) -> int:
    """The rights (WRITE and so on, added up) that anybody beside root and the owner has; `state`: of lstat."""
    entries = None if stat.S_ISLNK(state.st_mode) else _list(path, "access")
    if entries is None:
        return state.st_mode & 7 | (state.st_mode >> 3 & 7 if state.st_gid else 0)
    return _granted(entries, state.st_gid)


def of_others_in_new(folder: Path, state: os.stat_result) -> int:
    """As of_others, of what root creates in `folder`, as far as its default list decides."""
    entries = _list(folder, "default")
    return 0 if entries is None else _granted(entries, state.st_gid if state.st_mode & stat.S_ISGID else 0)


def _granted(entries: list[tuple[int, int, int]], group: int) -> int:
    mask = next((rights for tag, rights, _ in entries if tag == MASK), 7)
    found = 0
    for tag, rights, number in entries:
        if tag == EVERYBODY:
            found |= rights
        elif (tag in (NAMED_USER, NAMED_GROUP) and number) or (tag == OWN_GROUP and group):
            found |= rights & mask
    return found


def _list(path: Path, kind: str) -> Optional[list[tuple[int, int, int]]]:
    try:
        content = os.getxattr(path, f"system.posix_acl_{kind}", follow_symlinks=False)
    except OSError:  # there is none, as on most files, or the file system has none
        return None
    whole = (len(content) - VERSION_BYTES) // ENTRY.size * ENTRY.size
    return list(ENTRY.iter_unpack(content[VERSION_BYTES : VERSION_BYTES + whole]))
