"""Another user beside root, who runs the tests, and a folder where both can work."""
import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OTHER = pwd.getpwnam("nobody")


@contextmanager
def public_folder() -> Iterator[Path]:
    """A folder of root's that everybody may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="debzero-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def give(path: Path) -> Path:
    """Let `path` and what is below it belong to the other user."""
    for part in [path, *path.rglob("*")]:
        os.lchown(part, OTHER.pw_uid, OTHER.pw_gid)
    return path


def in_child(work: Callable[[], object]) -> str:
    """What `work` returns, or its error, as text; what it changes of its process is gone with it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = str(work())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode()[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer


def as_other(work: Callable[[], object]) -> str:
    """As in_child, as the other user."""
    def change() -> object:
        os.initgroups(OTHER.pw_name, OTHER.pw_gid)
        os.setgid(OTHER.pw_gid)
        os.setuid(OTHER.pw_uid)
        return work()

    return in_child(change)


def end_at(number: int, calls: Sequence[tuple[Any, str]]) -> None:
    """End this process at its so many-th of these calls, as a kill does; 0: at none. Each is a module and a name."""
    seen = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def do(*arguments: Any, **options: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == number:
                os._exit(9)
            return call(*arguments, **options)
        return do

    for owner, name in calls:
        setattr(owner, name, counted(getattr(owner, name)))
