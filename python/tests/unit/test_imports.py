"""Where debzero's processes import from: never from the folder that they are started in, which may be anybody's."""
import json
import os
import subprocess
import sys

import pytest
from support import SOURCE

from debzero.base import interpreter

# Of the standard library, of the pinned libraries, and debzero's own: each says so when it is imported.
NAMES = ("debzero", "queue", "yaml", "runpy", "random", "json", "torch", "sitecustomize", "usercustomize", "psutil",
         "deepspeed", "multiprocessing", "train", "signal")


@pytest.fixture
def hostile(bench):
    """A folder with modules that leave a file named after them when something imports them."""
    folder = bench.folder / "hostile"
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(
            f"open({str(folder)!r} + '/imported-{name}', 'w').close()\nraise ImportError('of the current folder')\n")
    return folder


@pytest.fixture
def wrapper(bench):
    """The installed command, with this Python for its environment and this checkout for what it installs."""
    text = (SOURCE.parents[1] / "debian/templates/usr/bin/debzero").read_text()
    venv = bench.folder / "venv" / "bin"
    venv.mkdir(parents=True)
    (venv / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (venv / "python").chmod(0o755)
    command = bench.folder / "debzero"
    command.write_text(text.replace("@venv@", str(venv.parent)).replace("/usr/share/debzero", str(SOURCE)))
    return command


def imported(folder):
    return sorted(path.name for path in folder.glob("imported-*"))


def test_no_command_imports_from_the_current_folder_or_a_variables(bench, hostile, wrapper):
    job = bench.job(train__epochs=1, ranks=1, train__max_steps=1)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{hostile}:",
                   "PYTHONWARNINGS": "ignore::sitecustomize.Warning"}
    # What check imports for a job, train imports as well.
    for arguments, codes in ((("--version",), {0}), (("check", "nothing.yml"), {2}), (("status", job), {1}),
                             (("stop", job), {0}), (("train", job), {0}), (("doctor", "--fast"), {0, 1}),
                             (("plan", "nothing.yml"), {2}), (("tune", "nothing.yml"), {2}),
                             (("bench", "nothing.yml"), {2}), (("predict", "nothing"), {2})):
        done = subprocess.run(["sh", str(wrapper), *map(str, arguments)], cwd=hostile, env=environment, text=True,
                              capture_output=True, timeout=300)
        assert done.returncode in codes and not imported(hostile), (arguments, imported(hostile), done)
        assert "of the current folder" not in done.stdout + done.stderr


def test_modules_that_run_as_programs_do_not_either(hostile):
    """A module of a library, such as DeepSpeed's converter, and debzero's own."""
    for name, code in (("json.tool", 0), ("debzero.doctor.child", 1)):
        done = subprocess.run(interpreter.module(name, *["/dev/null/x"] * (code or 0)), cwd=hostile, text=True,
                              capture_output=True, input="{}")
        assert not imported(hostile), (name, done)
        assert "of the current folder" not in done.stderr


def test_the_modules_arguments_arrive(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    done = subprocess.run(interpreter.module("json.tool", "--compact", str(tmp_path / "a.json")), text=True,
                          capture_output=True, check=True)
    assert json.loads(done.stdout) == [1]


def test_nothing_starts_python_with_the_current_folder_first():
    """`-m` and `-c` do that."""
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        if path != SOURCE / "debzero/base/interpreter.py":
            assert "sys.executable" not in text or path.name in ("launch.py", "folder.py", "convert.py"), path
