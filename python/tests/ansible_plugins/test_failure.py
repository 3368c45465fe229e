"""Which words of a failed task say why it failed."""
from __future__ import annotations

import failure
import pytest


@pytest.mark.parametrize(("result", "words"), [
    ({"msg": "Task failed: no such host"}, "no such host"),
    ({"msg": "non-zero return code", "stderr": "a\nthe disk is gone\n", "stdout": "x"}, "a\nthe disk is gone"),
    ({"msg": "non-zero return code", "stdout": "said here\n"}, "said here"),
    ({"msg": "non-zero return code"}, "non-zero return code"),
    ({"msg": "MODULE FAILURE: see stdout/stderr", "module_stderr": "sh: python3: not found"}, "sh: python3: not found"),
    ({"msg": "The following modules failed to execute: setup.", "failed_modules": {"setup": {
        "msg": "Module result deserialization failed: No start of json char found", "module_stdout": "",
        "module_stderr": "/bin/sh: 1: sudo: not found\n"}}}, "/bin/sh: 1: sudo: not found"),
    ({"msg": "The following modules failed to execute: setup.", "failed_modules": {"setup": {
        "msg": "The module interpreter '/usr/bin/python9' was not found.", "module_stderr": "x"}}},
     "The module interpreter '/usr/bin/python9' was not found."),
    ({"msg": "MODULE FAILURE: see stdout/stderr", "failed_modules": {}, "module_stderr": "no"}, "no"),
    ({"msg": "One or more items failed", "results": [
        {"msg": "first", "failed": True}, {"msg": "fine"}, {"msg": "second", "unreachable": True},
        {"msg": "first", "failed": True}]}, "first\nsecond"),
    ({"censored": "hidden"}, "its output is hidden")])
def test_the_cause_of_a_failure(result, words):
    assert failure.cause(result) == words


def test_long_output_is_shown_from_its_end():
    assert failure.cause({"stderr": "\n".join(map(str, range(50)))}).splitlines() == [*map(str, range(30, 50))]


@pytest.mark.parametrize("result", [{key: "a\x1b]0;title\x07b\tc\nd\x9b2J"} for key in ("msg", "stderr")])
def test_what_a_host_or_a_job_prints_commands_no_terminal(result):
    assert failure.cause(result) == "a]0;titleb\tc\nd2J"
    assert failure.cause({"results": [{**result, "failed": True}]}) == "a]0;titleb\tc\nd2J"
    journals = {"results": [{"item": {"item": "bert", **result}, "stdout": "\x1b[2Jgone"}]}
    assert failure.unit_reasons(journals) == "debzero@bert does not train:\n[2Jgone"


def test_a_unit_that_says_nothing_is_explained_by_systemd_s_words():
    journals = {"results": [{"item": {"item": "bert", "msg": "Unable to start"}, "stdout": "no job of that name\n"},
                            {"item": {"item": "gpt", "msg": "Unable to start"}, "stdout": ""}]}
    assert failure.unit_reasons(journals) == (
        "debzero@bert does not train:\nno job of that name\ndebzero@gpt does not train:\nUnable to start")
