"""What errors and messages quote from files, models and the environment, wherever it is shown."""
from __future__ import annotations

import os
import socket

import pytest

from debzero import cli
from debzero.base import systemd
from debzero.base.errors import InputError, Problem, UserError, as_text

EVIL = "a\x1b[2J\nOK: \u202eb\udcff\ud800"


def test_a_problem_is_shown_without_what_a_terminal_would_obey():
    problem = Problem(EVIL, EVIL, EVIL, EVIL)
    lines = as_text([problem]).split("\n")
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("OK") for line in lines), "no line of a file's own"
    assert InputError([problem]).problems[0].as_dict()["reason"] == EVIL, "JSON is exact: it has its own escapes"


def test_a_problem_of_an_endless_key_stays_readable():
    assert "why" in as_text([Problem("f", "k" * 9000, "why", "fix"), Problem("f", "short", "why", "fix")])


def test_a_user_error_is_one_paragraph():
    lines = str(UserError(EVIL, "fix it")).split("\n")
    assert all(line.isprintable() for line in lines) and lines[1].startswith("  OK")
    assert lines[-1] == "  -> fix it"


def test_no_line_reaches_systemd_that_debzero_did_not_mean(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        systemd.notify("READY=1", "STATUS=x\nMAINPID=1\ud800")
        assert listening.recv(999) == rb"READY=1" + b"\n" + rb"STATUS=x\nMAINPID=1\ud800"


GIVEN = EVIL.rstrip("\ud800")  # as Python has arguments: any bytes


@pytest.mark.parametrize("arguments", [["check", "a", GIVEN], [GIVEN], ["check", "--" + GIVEN], ["status", GIVEN],
                                       ["check", GIVEN + ".yml"], ["bench", "--render", GIVEN]])
def test_no_argument_reaches_the_terminal_as_it_is(arguments, capsys):
    try:
        code = cli.main(arguments)
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    assert code == 2
    assert all(c.isprintable() or c == "\n" for c in printed.out + printed.err), printed


def test_a_locale_without_a_character_ends_no_command(bench):
    path = bench.folder / "é\U0001f600.yml"
    path.write_text("output: [")
    done = bench.run("check", path, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii")
    assert done.returncode == 2 and "is not YAML" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert os.path.exists(path)
