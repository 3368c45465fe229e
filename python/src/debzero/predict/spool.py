"""A folder of files to answer. What is put into its `in` comes out in `out`, or in `failed` with a sentence about what
is wrong with it; `work` is this process's own.

Whoever may write to `in`, `out` and `failed` may put links, FIFOs and folders there and swap them at any moment. So in
these three names are only looked at and renamed, which follows nothing. A file is taken out of `in` by a rename, and
what is read is a copy, which nobody else can write to or cut off.

Each step is one rename or removal, durable before the next begins, so a kill leaves one of these states of a file:

    in/NAME                             nobody has begun
    work/taken/NAME                     to be copied
    work/input/NAME                     to be answered, or some of it is
    work/input/NAME, work/answers/OUT   answered: the input can go
    work/answers/OUT                    to be handed out
    out/OUT                             done
"""
from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Optional

from debzero.base.errors import InputError, Problem
from debzero.base.files import created, read_json, remove, write_json, write_text
from debzero.base.files import sync as sync_folder
from debzero.base.own_files import OTHERS_WRITE, ForeignFileError, require_own
from debzero.base.reading import open_regular
from debzero.base.text import bytes_text, did_you_mean, printable
from debzero.job.local_files import FORMATS
from debzero.run import lock

OPEN = ("in", "out", "failed")  # to the group that may ask
TAKEN, INPUT, ANSWERS = (f"work/{name}" for name in ("taken", "input", "answers"))
NOTE, FAILING = Path("work/begun.json"), Path("work/failing.json")
BLOCK = 2**20        # bytes
LARGEST = 2**32      # bytes of a file, sparse or not
LONGEST_NAME = 150   # bytes; names that are made of it are longer
LEFT = ".left"       # in TAKEN: what cannot be moved out of it
OCCUPIED = (errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST)
MOST_DEATHS = 5      # of this process at the same rows


class Refused(Exception):  # noqa: N818 - it is an outcome
    """Why a file is not answered."""


class Spool:
    """The folder, which is held, and entered: whoever swaps it for another changes nothing. One process at a time."""

    def __init__(self, folder: Path) -> None:
        """Raises an InputError for a folder that is not safe to work in, or that another process works in."""
        self.folder = folder.absolute()
        self.seen: dict[str, tuple[int, ...]] = {}
        self.left: dict[tuple[int, int], str] = {}  # what cannot be moved, by device and inode
        try:
            self._enter()
        except ForeignFileError as error:
            raise self._wrong(str(error)) from None
        except OSError as error:
            raise self._wrong(f"cannot be used: {error.strerror}: {printable(str(error.filename or folder))}") from None

    def _enter(self) -> None:
        handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        state = os.fstat(handle)
        if state.st_uid not in (0, os.geteuid()) or state.st_mode & OTHERS_WRITE:
            raise ForeignFileError("belongs to somebody else, or others may write to it, who could swap what is in it")
        os.fchdir(handle)
        os.close(handle)
        for name in (*OPEN, "work"):
            with suppress(FileExistsError):
                os.mkdir(name, 0o700)
            inner = os.lstat(name)
            if not stat.S_ISDIR(inner.st_mode) or inner.st_uid != os.geteuid() or inner.st_dev != state.st_dev:
                raise ForeignFileError(f"{name} in it is no folder of this user's on the same file system")
        require_own(os.lstat("work"), Path("work"), folders=True)
        for name in (TAKEN, INPUT, ANSWERS):
            Path(name).mkdir(0o700, exist_ok=True)
        self._lock = lock.open_own(Path("work/lock"))
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = lock.holder(Path("work/lock"))
            raise self._wrong(f"process {holder or 'unknown'} works in it already", "one at a time") from None

    def _wrong(self, reason: str, fix: str = "name a folder of this user's own, which nobody else may write to"
               ) -> InputError:
        return InputError([Problem(str(self.folder), "--spool", reason, fix)])

    def waiting(self) -> list[str]:
        """The files in `in`, in the order in which they came. What has changed since the last look may still be
        written, and a name that begins with a dot says so."""
        found: dict[str, tuple[int, ...]] = {}
        left = {}
        with os.scandir("in") as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    info = entry.stat(follow_symlinks=False)
                    if (info.st_dev, info.st_ino) in self.left:
                        left[info.st_dev, info.st_ino] = entry.name
                    elif not entry.name.startswith("."):
                        found[entry.name] = (info.st_ctime_ns, info.st_ino, info.st_size, info.st_mtime_ns)
        settled = sorted((name for name, state in found.items() if self.seen.get(name) == state), key=found.__getitem__)
        self.seen, self.left = found, left
        return settled

    def take(self, name: str) -> str:
        """Make the file the one that is begun; what to say where it is none."""
        waits = os.path.join("in", name)
        try:
            info = os.lstat(waits)
            os.rename(waits, os.path.join(TAKEN, name))
        except FileNotFoundError:
            return ""
        except PermissionError as error:  # a folder of somebody's
            self.left[info.st_dev, info.st_ino] = name
            return f"{printable(name)} cannot be taken out of {self.folder / 'in'}: {error.strerror}"
        _sync("in", TAKEN)
        return self._copy(name)

    def _copy(self, name: str) -> str:
        """Make work/input of work/taken, or put that aside."""
        taken, copied = Path(TAKEN, name), Path(INPUT, name)
        try:
            if not copied.exists():
                _check_name(name)
                _copy_to(taken, copied)
        except Refused as refused:
            return self._aside(taken, str(refused))
        os.unlink(taken)
        _sync(TAKEN)
        return ""

    def begun(self) -> tuple[Optional[str], list[str]]:
        """The file that an earlier process, or this one, has begun and not ended, after the step that it was at is
        complete; and what to say of that."""
        said = []
        with _may_be_occupied():  # then it is put aside under another name
            said.append(self._finish_failing())
        said += [self._copy(name) for name in os.listdir(TAKEN) if not name.startswith(LEFT)]
        answered = [name for name in os.listdir(ANSWERS) if not name.startswith(".")]
        if answered:
            said.append(self.publish())
        name = next(iter(os.listdir(INPUT)), None)
        if name is None:
            self._tidy()
        return name, [*filter(None, said)]

    def input(self, name: str) -> Path:
        return Path(INPUT, name)

    def answers(self, name: str) -> Path:
        """Where the answers to a file are written: it appears when all of them are there."""
        # .json is no format of answers, and its name must not become that of another file's.
        return Path(ANSWERS, f"{name}.jsonl" if name.endswith(".json") else name)

    def publish(self) -> str:
        """Hand out the answers that are complete; what to say."""
        [name] = [name for name in os.listdir(ANSWERS) if not name.startswith(".")]
        for answered in os.listdir(INPUT):
            os.unlink(os.path.join(INPUT, answered))
        _sync(INPUT)
        while True:
            final = _free("out", name)
            with _may_be_occupied():
                os.rename(os.path.join(ANSWERS, name), os.path.join("out", final))
                break
        _sync("out", ANSWERS)
        self._tidy()
        return f"answered: {self.folder / 'out' / final}"

    def fail(self, name: str, reason: str) -> str:
        """Put the file that is begun aside; what to say."""
        said = self._aside(self.input(name), reason)
        self._tidy()
        return said

    def _aside(self, path: Path, reason: str) -> str:
        """Put a file and a sentence into `failed`."""
        shown = printable(path.name)
        wanted = shown if _fits(shown) else shown.encode()[:LONGEST_NAME].decode(errors="ignore")
        while True:
            name = _free("failed", wanted)
            write_json(FAILING, {"path": str(path), "to": name, "said": printable(f"{shown} {reason}")})
            with _may_be_occupied():
                return self._finish_failing()

    def _finish_failing(self) -> str:
        """What a kill may have interrupted. What is no regular file is removed: nobody is to stumble over it."""
        note = read_json(FAILING, own=True)
        if not note:
            return ""
        path, final = Path(note["path"]), os.path.join("failed", note["to"])
        with suppress(FileNotFoundError):
            mode = os.lstat(path).st_mode
            if stat.S_ISDIR(mode):
                _move_folder(path, final)
            elif stat.S_ISREG(mode):
                os.rename(path, final)
            else:
                os.unlink(path)
        sentence = Path("work/sentence")
        write_text(sentence, f"{note['said']}\n")
        with suppress(IsADirectoryError):
            os.rename(sentence, f"{final}.txt")
        _sync("failed", str(path.parent))
        FAILING.unlink()
        return f"failed: {note['said']}"

    def _tidy(self) -> None:
        """Forget what was begun."""
        for name in os.listdir(ANSWERS):
            if name.startswith("."):
                remove(Path(ANSWERS, name))
        NOTE.unlink(missing_ok=True)

    def begin(self) -> bool:
        """Note that the rows which come next are begun; False where that has ended this process too often."""
        deaths = read_json(NOTE, own=True).get("deaths", 0)
        if type(deaths) is int and deaths >= MOST_DEATHS:
            return False
        write_json(NOTE, {"deaths": deaths + 1})
        return True

    def advance(self) -> None:
        """Note that the rows which came next are answered, or were given back."""
        NOTE.unlink(missing_ok=True)


@contextmanager
def _may_be_occupied() -> Iterator[None]:
    """The block is left where a rename in it finds what somebody has put at its target a moment ago: a folder, or
    anything where a folder is renamed."""
    try:
        yield
    except OSError as error:
        if error.errno not in OCCUPIED:
            raise


def _move_folder(path: Path, final: str) -> None:
    """A folder whose owner has closed it since it was taken keeps its parent, and is not looked at again."""
    try:
        os.rename(path, final)
    except PermissionError:
        os.rename(path, path.with_name(_free(str(path.parent), LEFT)))


def _copy_to(taken: Path, copied: Path) -> None:
    mode = os.lstat(taken).st_mode
    if not stat.S_ISREG(mode):
        raise Refused("is a link, which is not followed" if stat.S_ISLNK(mode) else "is no regular file")
    try:
        source = open_regular(taken, own=True)
    except PermissionError:
        raise Refused("may not be read by this process: let its group read it (chmod g+r)") from None
    copy = Path("work/copy")
    with source:
        before = os.fstat(source.fileno())
        if before.st_nlink > 1:
            raise Refused("has a second name, elsewhere (a hard link): copy it instead")
        remove(copy)
        try:
            with created(copy) as file:
                while block := source.read(BLOCK):
                    if file.tell() + len(block) > LARGEST:
                        raise Refused(f"has more than {bytes_text(LARGEST)}: divide it")
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            after = os.fstat(source.fileno())
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise Refused("was still written to when it was read: write it under a name that begins with a dot, "
                              "and rename it when it is complete")
        except BaseException:
            remove(copy)  # a full disk must not stay full because of it
            raise
    os.rename(copy, copied)
    _sync("work", INPUT)


def _check_name(name: str) -> None:
    if printable(name) != name:
        raise Refused("has a name with characters that cannot be printed; give it another")
    if not _fits(name):
        raise Refused(f"has a name of more than {LONGEST_NAME} bytes; give it a shorter one")
    if Path(name).suffix not in FORMATS:
        raise Refused(f"has no name of a file of texts: {did_you_mean(Path(name).suffix, [*FORMATS])}")


def _fits(name: str) -> bool:
    return len(os.fsencode(name)) <= LONGEST_NAME


def _free(folder: str, name: str) -> str:
    """The name, with a number before its suffix where something in the folder has it, or a sentence's name would."""
    there, path, number = {*os.listdir(folder)}, Path(name), 1
    while there & {name, f"{name}.txt"}:
        number += 1
        name = f"{path.stem}.{number}{path.suffix}"
    return name


def _sync(*folders: str) -> None:
    for folder in folders:
        sync_folder(Path(folder))
