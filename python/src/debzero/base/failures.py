"""The causes of errors that libraries raise in many shapes: disk, rights, damaged files, memory, the hub.

Each is returned as a UserError. What is none of them is a defect, which keeps its traceback. The errno decides; where a
library hides it, the state of the file system does. """
from __future__ import annotations

import errno
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

from debzero.base.errors import OutOfMemory, PassingError, UserError
from debzero.base.files import nearest

LOW_BYTES = 2**24  # with less free space than this, a write that failed for an unknown reason met a full disk
RESUME = "then start the job again: it resumes from its newest checkpoint"
# torch's zip writer, of torch 1.13 and 2: it passes on neither the errno nor, once the file is open, its name.
TORCH_CANNOT_WRITE = re.compile(r"PytorchStreamWriter failed|inline_container\.cc:\d+\] \. unexpected pos")
TORCH_CANNOT_OPEN = re.compile(r"^(?:File|Parent directory) (.+) (?:cannot be opened|does not exist)\.")
DAMAGED = ("PytorchStreamReader failed", "Error while deserializing header", "incomplete metadata")
PATH_VARIABLES = ("f", "filename", "checkpoint_file", "path")  # of functions that read weights, in torch and others
MEMORY = ("out of memory", "DefaultCPUAllocator: can't allocate memory", "std::bad_alloc")
# gloo's, in torch 1.13 and 2. (NCCL's errors may have other causes.)
LOST_RANK = re.compile(r"gloo/transport/.*(?:Connection (?:closed|reset) by peer|(?:Read|Write)v? error)", re.DOTALL)
HUB_UNREACHABLE = ("couldn't connect to", "LocalEntryNotFound", "OfflineMode", "Max retries exceeded",
                   "ConnectionError", "Couldn't reach", "Temporary failure in name resolution", "offline mode",
                   "ConnectTimeout", "ProxyError")
HUB_UNKNOWN = ("DatasetNotFoundError", "RepositoryNotFound", "is not a valid model identifier")


def as_user_error(error: BaseException, folder: str) -> Optional[UserError]:
    """The cause of `error`, which a run met that writes to `folder`; None for a defect."""
    if isinstance(error, UserError):
        return error
    text = f"{type(error).__name__}: {error}"
    first_line = next(iter(str(error).splitlines()), "")
    if known := disk_full(error, folder) or _unwritable(error, folder):
        return known
    if _errno(error) in (errno.EACCES, errno.EPERM):
        return UserError(f"no permission: {error}",
                         "give the user that runs the job access, or change the path in the job")
    if isinstance(error, MemoryError) or any(words in text for words in MEMORY):
        return OutOfMemory(
            f"out of memory: {first_line[:160]}",
            "set a smaller train.micro_batch (the global batch stays), a higher zero.stage or zero.offload_optimizer: "
            "cpu; where the job has a DeepSpeed JSON, their keys there")
    if known := _damaged_file(error):
        return known
    if LOST_RANK.search(text):
        return PassingError(f"another rank has gone: {first_line[:200]}", "see what it reported")
    if any(words in text for words in HUB_UNREACHABLE):
        return PassingError(
            f"the model hub cannot be reached from this host: {first_line[:200]}",
            "check the network or proxy (HTTPS_PROXY in /etc/default/debzero), or give a local folder for `model:` "
            "and a local file for `data.dataset:`")
    if "trust_remote_code" in text:  # what the libraries advise there
        return UserError("the model or the data set needs a program of its own, which debzero never runs",
                         "use one that the libraries know; a data set can be converted to parquet or csv")
    if any(words in text for words in HUB_UNKNOWN):
        return UserError(
            f"not found on the hub: {first_line[:200]}",
            "check the spelling of `model:` and `data.dataset:`; a private one needs HF_TOKEN")
    return None


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Raises a UserError in place of the block's error if a full disk is behind it. Enter it within whatever removes
    the half-written file: torch's writer hides the errno, and then the free space decides."""
    try:
        yield
    except Exception as error:
        if known := disk_full(error, str(folder)):
            raise known from error
        raise


def disk_full(error: BaseException, folder: str) -> Optional[PassingError]:
    """What to say if a full disk, a quota or a limit on file sizes is behind `error`; else None."""
    for link in _chain(error):
        place = _place(link, folder)
        free = _free_bytes(place)
        code = _errno(link)
        if code == errno.ENOSPC:
            return _full(place, free)
        if code == errno.EDQUOT:
            return PassingError(f"the disk quota is used up: no more may be written to {place}",
                             f"remove files, or ask for a larger quota (`quota -s` shows it), {RESUME}")
        if code == errno.EFBIG:
            return PassingError(f"a file in {place} is larger than the file system or `ulimit -f` allows",
                             f"raise the limit, or set `output:` to a folder on another file system, {RESUME}")
        if TORCH_CANNOT_WRITE.search(str(link)) and os.access(place, os.W_OK):
            return _full(place, free) if free < LOW_BYTES else PassingError(
                f"torch could not finish a file in {place}, which has {free / 2**20:.0f} MiB free",
                "look for a quota (`quota -s`), a limit on file sizes (`ulimit -f`) or a failing disk "
                f"(`journalctl -k`), {RESUME}")
    return None


def _full(place: Path, free: int) -> PassingError:
    return PassingError(f"the disk is full: {place} has {free / 2**20:.0f} MiB free; what was half-written has been "
                     "removed",
                     "make room there (if that looks like enough, check /tmp, /dev/shm and, with `df -i`, the inodes), "
                     f"or set `output:` to a folder on a larger disk, {RESUME}")


def _unwritable(error: BaseException, folder: str) -> Optional[UserError]:
    for link in _chain(error):
        place = _place(link, folder)
        opened = TORCH_CANNOT_OPEN.match(str(link)) if isinstance(link, RuntimeError) else None
        if opened:
            place = nearest(Path(opened[1]).absolute().parent)
        by_torch = opened or TORCH_CANNOT_WRITE.search(str(link))
        if _errno(link) == errno.EROFS or (by_torch and os.statvfs(place).f_flag & os.ST_RDONLY):
            return UserError(f"the file system of {place} is mounted read-only",
                             f"remount it writable (`journalctl -k` may say why it is not), {RESUME}")
        if by_torch and not os.access(place, os.W_OK):
            return UserError(f"{place} may not be written by this user",
                             "give the user that runs the job access, or change the path in the job")
    return None


def _damaged_file(error: BaseException) -> Optional[UserError]:
    """A file of weights that is cut off or holds something else. Its name is in no message: the functions that were
    reading it know it."""
    for link in _chain(error):
        unreadable = isinstance(link, (EOFError, pickle.UnpicklingError, zipfile.BadZipFile)) or (
            isinstance(link, OSError) and link.errno == errno.EINVAL and link.filename is None)
        if unreadable or any(words in str(link) for words in DAMAGED):
            path = _being_read(link)
            if path or not unreadable:
                reason = next(iter(str(link).splitlines()), "") or type(link).__name__
                return UserError(f"{path or 'a file of weights'} is damaged: {reason[:160]}",
                                 "put a whole copy in its place; a damaged checkpoint may be removed, then the job "
                                 "resumes from the one before it")
    return None


def _being_read(error: BaseException) -> Optional[Path]:
    found, trace = None, error.__traceback__
    while trace is not None:
        for name in PATH_VARIABLES:
            value = trace.tb_frame.f_locals.get(name)
            if isinstance(value, (str, Path)) and os.path.isfile(value) and not str(value).endswith(".py"):
                found = Path(value)
        trace = trace.tb_next
    return found


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, as far as Python shows it with a traceback."""
    seen: list[BaseException] = []
    link: Optional[BaseException] = error
    while link is not None and link not in seen:
        seen.append(link)
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _errno(error: BaseException) -> Optional[int]:
    """The libraries written in Rust (safetensors, tokenizers) have it in their text alone."""
    if isinstance(error, OSError):
        return error.errno
    written = re.search(r"\(os error (\d+)\)", str(error))
    return int(written[1]) if written else None


def _place(error: BaseException, folder: str) -> Path:
    """The folder that an error is about: of its own file, where it has one."""
    file = error.filename if isinstance(error, OSError) and isinstance(error.filename, str) else None
    return nearest(Path(file).absolute().parent if file else Path(folder).absolute())


def _free_bytes(place: Path) -> int:
    state = os.statvfs(place)
    return state.f_bavail * state.f_frsize
