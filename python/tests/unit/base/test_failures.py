"""What libraries raise is traced to its cause: a full disk, a folder that may not be written, a damaged file."""
from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file
from support import POWERLESS, SOURCE

from debzero.base.errors import PassingError
from debzero.base.failures import as_user_error, disk_full

SAVE = """
    import os, sys
    import torch
    from safetensors.torch import save_file
    from debzero.base.failures import as_user_error

    def python(values, path):
        with open(path, "wb") as file:
            file.write(values["x"].numpy().tobytes())

    writers = {"torch": torch.save, "safetensors": save_file, "python": python}
    writer, folder = sys.argv[1:]
    try:
        writers[writer]({"x": torch.ones(2**20)}, os.path.join(folder, "file.pt"))
    except Exception as error:
        print(as_user_error(error, folder), flush=True)
        os._exit(0)  # as a rank does: torch 1.13 aborts when the failed writer is freed
    os._exit(1)
"""


@contextmanager
def file_system(folder, options):
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def failed_save(writer, folder, through=()):
    """What as_user_error says of a save of 4 MiB that fails."""
    done = subprocess.run([*through, sys.executable, "-c", textwrap.dedent(SAVE), writer, str(folder)], text=True,
                          capture_output=True, timeout=120, env={"PYTHONPATH": str(SOURCE)})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("writer", ["torch", "safetensors", "python"])
def test_a_full_disk_is_named(tmp_path, writer):
    with file_system(tmp_path / "small", "size=1m") as folder:
        text = failed_save(writer, folder)
    assert "the disk is full" in text and str(folder) in text and "MiB free" in text


def test_a_full_disk_is_named_although_the_half_written_file_is_removed(tmp_path):
    """torch's writer says nothing of the disk, and with the file gone there is room again."""
    script = """
    import os, sys
    from pathlib import Path
    import torch
    from debzero.base.failures import as_user_error, full_disk_named

    folder = Path(sys.argv[1])
    try:
        try:
            with full_disk_named(folder):
                torch.save(torch.ones(2**24), folder / "file.pt")
        finally:
            (folder / "file.pt").unlink()
    except Exception as error:
        print(as_user_error(error, "/"), flush=True)
        os._exit(0)
    """
    with file_system(tmp_path / "small", "size=40m") as folder:
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(folder)], text=True,
                              capture_output=True, timeout=120, env={"PYTHONPATH": str(SOURCE)})
    assert f"the disk is full: {folder} has 0 MiB free" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("writer", ["torch", "safetensors", "python"])
def test_a_folder_that_may_not_be_written_is_not_a_full_disk(tmp_path, writer):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    text = failed_save(writer, folder, POWERLESS)
    assert ("may not be written" if writer == "torch" else "no permission") in text and "full" not in text
    assert str(folder) in text or writer == "safetensors"  # which does not name it


@pytest.mark.parametrize("writer", ["torch", "safetensors", "python"])
def test_a_file_system_that_is_read_only_is_not_a_full_disk(tmp_path, writer):
    with file_system(tmp_path / "fixed", "ro") as folder:
        text = failed_save(writer, folder)
    assert "is mounted read-only" in text and str(folder) in text and "full" not in text


@pytest.mark.parametrize("writer", ["torch", "python"])
def test_a_limit_on_file_sizes_is_not_a_full_disk(tmp_path, writer):
    text = failed_save(writer, tmp_path, ["bash", "-c", 'trap "" XFSZ; ulimit -f 1024; exec "$0" "$@"'])
    assert "`ulimit -f`" in text and str(tmp_path) in text and "the disk is full" not in text


def damaged(tmp_path, kind):
    """A file of 40 KiB of which most is missing, and the function that reads it."""
    path = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        from transformers.modeling_utils import load_state_dict

        save_file({"x": torch.ones(10_000)}, path, {"format": "pt"})
        path.write_bytes(path.read_bytes()[:4])
        return path, lambda: load_state_dict(str(path))
    torch.save({"x": torch.ones(10_000)}, path)
    path.write_bytes({"short": path.read_bytes()[:300], "half": path.read_bytes()[:5000], "empty": b"",
                      "text": b"404 not found"}[kind])
    return path, lambda: torch.load(path)


@pytest.mark.parametrize("kind", ["short", "half", "empty", "text", "safetensors"])
def test_a_damaged_file_is_named(tmp_path, kind):
    path, read = damaged(tmp_path, kind)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each release of torch has its own
        read()
    text = str(as_user_error(caught.value, str(tmp_path)))
    assert str(path) in text and "damaged" in text and "full" not in text


def raised(how):
    """The error that a library raises after it met a quota; `how` it does."""
    try:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        except OSError as error:
            if how == "from it":
                raise RuntimeError("cannot save") from error
            if how == "while handling it":
                raise RuntimeError("cannot save")  # noqa: B904
            raise RuntimeError("cannot save") from None
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(("how", "seen"), [("from it", True), ("while handling it", True), ("from None", False)])
def test_the_cause_of_an_error_counts_where_python_shows_it(how, seen):
    assert ("quota" in str(disk_full(raised(how), "/"))) == seen


def test_a_file_that_may_not_be_read_is_not_taken_for_one_to_be_written():
    error = PermissionError(errno.EACCES, "Permission denied", "/proc/1/mem")
    assert str(as_user_error(error, "/")).startswith("no permission: [Errno 13] Permission denied: '/proc/1/mem'")


@pytest.mark.parametrize("text", [
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:589] Read error [10.89.0.12]:58083: Connection reset by peer",
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:598] Connection closed by peer [127.0.0.1]:1234"])
def test_a_rank_that_merely_lost_another_has_no_defect(text):
    known = as_user_error(RuntimeError(text), "/")
    assert isinstance(known, PassingError) and known.reason == f"another rank has gone: {text}"


@pytest.mark.parametrize("error", [RuntimeError("[enforce fail at inline_container.cc:1] . oops"), ValueError("x"),
                                   FileNotFoundError(errno.ENOENT, "No such file", "/nowhere")])
def test_a_defect_is_no_users_error(error):
    assert disk_full(error, "/") is None


def test_a_defect_keeps_its_traceback():
    assert as_user_error(ValueError("no such key"), "/") is None
