"""Root and the files of others: a command that root starts works as the user whose files it is about to touch.

Whoever may write to a folder may put links, FIFOs and lies into it, and may swap what is below it at any moment. So
root never acts in such a folder as root. It becomes the user to whom the first thing on the path belongs that is not
root's own: as that user, whatever lies there can only do what the user could do anyway. What is root's own from the
file system's root to the last folder stays root's.
"""
from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

from debzero.base import access, terminal
from debzero.base.errors import UserError

OPEN = "is root's, and others may write to it"
OPEN_LATER = "is root's, and its default access control list lets others write to what is created in it"
CLOSE = ("let only root write to it (`chmod go-w`, `setfacl --remove-all`), or run this as the user who works there: "
         "`runuser --pty -u USER -- debzero ...`")
UMASK = 0o027  # of what commands write into their own folders: private training data is for its owner and group
MOST_LINKS = 40  # as the kernel follows in one path
# Variables that name folders in which libraries write.
WRITTEN = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "TORCH_HOME", "CUDA_CACHE_PATH", "TRITON_CACHE_DIR",
           "TORCH_EXTENSIONS_DIR", "MPLCONFIGDIR", "TMPDIR", "TEMP", "TMP", "XDG_RUNTIME_DIR")


def tighten_umask() -> None:
    """New files are at most for their owner and group; stricter where this process was already."""
    os.umask(os.umask(0o777) | UMASK)


def is_anothers(path: Path) -> bool:
    """Whether become_owner(path) would change the user."""
    return _owner(path) is not None


def become_owner(*paths: Path, otherwise: str = "") -> None:
    """Where root runs this, become the owner of `paths`, or of what is to be created there, for good, and leave root's
    terminal; where all of it is root's, become the user `otherwise`, if there is one, or only leave what variables name
    of other users. Raises a UserError where that cannot be."""
    account = _owner(*paths) or _account(otherwise)
    if account is None:
        keep_to_roots()
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


def keep_to_roots(*names: str) -> None:
    """Where root runs this, none of these variables (none given: of all) leads it to what another user may change, as
    after `sudo -E` or `su`: caches of compiled code, configurations, programs. Of a list such as PATH only those
    folders go."""
    for name, value in list(os.environ.items()) if os.geteuid() == 0 else ():
        # The commands themselves see to debzero's own.
        if name.startswith("DEBZERO_") or (names and name not in names):
            continue
        folders = value.split(os.pathsep)
        kept = [folder for folder in folders
                if not folder.startswith(("/", "~")) or not distrust(Path(os.path.expanduser(folder)))]
        if not kept:
            del os.environ[name]
        elif kept != folders:
            os.environ[name] = os.pathsep.join(kept)
    if os.geteuid() == 0:
        os.environ.setdefault("HOME", pwd.getpwuid(0).pw_dir)


def distrust(path: Path) -> str:
    """Why root, who runs this, does not take `path` for its own; empty where it may."""
    try:
        account = _owner(path)
    except UserError as error:
        return error.reason.partition(": root")[0]
    return f"{path} is the user {account.pw_name}'s" if account else ""


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


def is_roots_alone(path: Path) -> bool:
    """Whether nobody but root can change where `path` leads: only there may a message have root change an owner."""
    try:
        return _first_stranger(path) == 0
    except UserError:
        return False


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
                raise _refusal(path, f"is the user {user}'s, who has no account here",
                               f"make one (`useradd --uid {user} NAME`), as after a disk was moved or in a container; "
                               "or give what is there to a user of this host (`chown -R`)") from None
    return None


def _account(name: str) -> Optional[pwd.struct_passwd]:
    """The user of this name, if there is one and root runs this."""
    try:
        return pwd.getpwnam(name) if name and os.geteuid() == 0 else None
    except KeyError:
        return None


def _first_stranger(path: Path) -> int:
    """The owner of the first thing on the way to `path` that is not root's; 0 where there is none. All that is walked
    through before it is root's and closed to others, so it cannot change meanwhile. In a folder such as /tmp, where
    nobody may replace what is another's, the owner of what is there decides. What lies below a folder that only root
    may enter is out of everybody's reach. Raises a UserError at something of root's that others may write to, now or
    when it is created: nobody can tell who made what is in it."""
    left, here, links = [*reversed(path.absolute().parts[1:])], Path("/"), 0
    private: Optional[Path] = None  # a folder that only root may enter
    state = os.lstat(here)
    rights = access.of_others(here, state)
    while left:
        name = left.pop()
        at = here.parent if name == ".." else here / name
        private = private if private and at.is_relative_to(private) else None
        try:
            state = os.lstat(at)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            break  # what is created there is root's
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP) or not os.access(here, os.X_OK):
                return 0  # nothing can be done with it
            raise _refusal(at, f"cannot be looked at, by root either ({error.strerror})") from None
        if state.st_uid and not (private and (stat.S_ISDIR(state.st_mode) or state.st_nlink == 1)):
            return state.st_uid
        if stat.S_ISLNK(state.st_mode):
            links += 1
            if links > MOST_LINKS:
                return 0  # the kernel refuses it, too
            target = Path(os.readlink(at))
            left += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            here = Path("/") if target.is_absolute() else here
            continue
        here, rights = at, access.of_others(at, state)
        if private:
            continue
        if stat.S_ISDIR(state.st_mode):
            private = None if rights & access.ENTER else at
            if rights & access.WRITE and not state.st_mode & stat.S_ISVTX:
                raise _refusal(at, OPEN)
        elif stat.S_ISREG(state.st_mode) and rights & access.WRITE:
            raise _refusal(at, OPEN)
    else:
        if rights & access.WRITE and not private and stat.S_ISDIR(state.st_mode):
            raise _refusal(path, OPEN)
    if not private and access.of_others_in_new(here, os.lstat(here)) & access.WRITE:
        raise _refusal(here, OPEN_LATER)
    return 0


def _cannot_become(account: pwd.struct_passwd, path: Path, error: OSError) -> UserError:
    return _refusal(path, f"is the user {account.pw_name}'s, whom root cannot become here ({error.strerror})")


def _refusal(path: Path, reason: str, fix: str = CLOSE) -> UserError:
    return UserError(f"{path} {reason}: root does not work with what others may have put there", fix)
