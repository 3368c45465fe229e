"""Root and the files of others: a command that root starts works as the user whose files it is about to touch.

Whoever may write to a folder may put links, FIFOs and lies into it, and may swap what is below it at any moment. So
root never acts in such a folder as root. It becomes the user to whom the first thing on the path belongs that is not
root's own: as that user, whatever lies there can only do what the user could do anyway. What is root's own from the
file system's root to the last folder stays root's.
"""
from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

from debzero.base import terminal
from debzero.base.errors import UserError

OPEN = "is root's, and others may write to it"
UMASK = 0o027  # of what commands write into their own folders: private training data is for its owner and group
MOST_LINKS = 40  # as the kernel follows in one path
# Variables that name folders of libraries: where they keep what they load again, compiled code among it, and others.
CACHES = ("XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME", "CUDA_CACHE_PATH", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR")
WRITTEN = (*CACHES, "TMPDIR", "TEMP", "TMP", "XDG_RUNTIME_DIR")


def tighten_umask() -> None:
    """New files are at most for their owner and group; stricter where this process was already."""
    os.umask(os.umask(0o777) | UMASK)


def is_anothers(path: Path) -> bool:
    """Whether become_owner(path) would change the user."""
    return _owner(path) is not None


def become_owner(*paths: Path) -> None:
    """Where root runs this, become the owner of `paths`, or of what is to be created there, for good, and leave root's
    terminal. Raises a UserError where that cannot be."""
    account = _owner(*paths)
    if account is None:
        _leave_others_caches()
        return
    parent = terminal.leave()
    try:
        os.initgroups(account.pw_name, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    except OSError as error:
        raise _cannot_become(account, paths[0], error) from None
    if parent is not None:
        terminal.end_with(parent)
    os.environ.update(HOME=account.pw_dir, USER=account.pw_name, LOGNAME=account.pw_name)
    for name in WRITTEN:  # root's may be out of reach
        if name in os.environ and not os.access(os.environ[name], os.W_OK | os.X_OK):
            del os.environ[name]


def _leave_others_caches() -> None:
    """Where root stays root, it also loads nothing from another user's caches, as after `sudo -E`."""
    for name in ("HOME", *CACHES) if os.geteuid() == 0 else ():
        try:
            foreign = name in os.environ and _first_stranger(Path(os.environ[name])) != 0
        except UserError:
            foreign = True
        if foreign:
            del os.environ[name]
    if os.geteuid() == 0:
        os.environ.setdefault("HOME", pwd.getpwuid(0).pw_dir)


@contextmanager
def acting_as_owner(*paths: Path) -> Iterator[None]:
    """Where root runs this, read and write as the owner of `paths` within the block. It is root's code that runs in it,
    for it can become root again: nothing of the owner's. Raises a UserError where that cannot be."""
    account = _owner(*paths)
    if account is None:
        yield
        return
    groups, group = os.getgroups(), os.getgid()
    try:
        os.initgroups(account.pw_name, account.pw_gid)
        os.setresgid(account.pw_gid, account.pw_gid, group)
        os.setresuid(account.pw_uid, account.pw_uid, 0)  # access(2) asks the first, files the second
    except OSError as error:
        raise _cannot_become(account, paths[0], error) from None
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(group, group, group)
        os.setgroups(groups)


def require_own(path: Path) -> None:
    """Raises a UserError where root runs this and `path`, which is there, is not root's alone: somebody else was
    faster, or nobody has called become_owner."""
    if account := _owner(path):
        raise _refusal(path, f"is the user {account.pw_name}'s")


def _owner(*paths: Path) -> Optional[pwd.struct_passwd]:
    """The user that root has to become for `paths`; None where this process is not root's, or they are all root's."""
    if os.geteuid() != 0:
        return None
    for path in paths:
        user = _first_stranger(path)
        if user:
            try:
                return pwd.getpwuid(user)
            except KeyError:
                raise _refusal(path, f"is the user {user}'s, who has no account here") from None
    return None


def _first_stranger(path: Path) -> int:
    """The owner of the first thing on the way to `path` that is not root's; 0 where there is none. All that is walked
    through before it is root's and closed to others, so it cannot change meanwhile. In a folder such as /tmp, where
    nobody may replace what is another's, the owner of what is there decides. What lies below a folder that only root
    may enter is out of everybody's reach. Raises a UserError at a folder of root's that others may write to: nobody can
    tell who made what is in it."""
    left, here, links = [*reversed(path.absolute().parts[1:])], Path("/"), 0
    private: Optional[Path] = None  # a folder that only root may enter
    shared = False
    while left:
        name = left.pop()
        at = here.parent if name == ".." else here / name
        private = private if private and at.is_relative_to(private) else None
        try:
            state = os.lstat(at)
        except OSError:  # it is not there yet, or nothing can be done with it
            return 0
        if state.st_uid and not private:
            return state.st_uid
        if stat.S_ISLNK(state.st_mode):
            links += 1
            if links > MOST_LINKS:
                return 0  # the kernel refuses it, too
            target = Path(os.readlink(at))
            left += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            here = Path("/") if target.is_absolute() else here
            continue
        here = at
        if private or not stat.S_ISDIR(state.st_mode):
            continue
        others = stat.S_IRWXO | (stat.S_IRWXG if state.st_gid else 0)
        shared = bool(state.st_mode & others & (stat.S_IWOTH | stat.S_IWGRP))
        if shared and not state.st_mode & stat.S_ISVTX:
            raise _refusal(at, OPEN)
        private = None if state.st_mode & others & (stat.S_IXOTH | stat.S_IXGRP) else at
    if shared and not private:
        raise _refusal(path, OPEN)
    return 0


def _cannot_become(account: pwd.struct_passwd, path: Path, error: OSError) -> UserError:
    return _refusal(path, f"is the user {account.pw_name}'s, whom root cannot become here ({error.strerror})")


def _refusal(path: Path, reason: str) -> UserError:
    return UserError(f"{path} {reason}: root does not work with what others may have put there",
                     "run this as the user who owns the folder (`sudo -u USER debzero ...`), or let only root write to "
                     "it")
