"""Which of DeepSpeed's operators a host can have, prebuilt or compiled."""
import os

import pytest

from debzero.base import operators
from debzero.base.operators import Wheel, unavailable
from debzero.base.stack import stack

OLD = stack().torch  # which asks for C++14
BARE = Wheel(stack().deepspeed, [], "cpu", "", "")
NO_LIBAIO = 'for each in "$@"; do [ "$each" != -laio ] || exit 1; done; exec g++ "$@"'
FULL = Wheel(stack().deepspeed, ["async_io", "cpu_adam"], "cuda", "", "")


@pytest.fixture
def host(monkeypatch, tmp_path):
    """A host with this wheel and compiler; `builder`: the text of DeepSpeed's builder for processors."""
    def make(wheel=BARE, compiler="exec g++ \"$@\"", builder="args = ['-O3']", ninja=True):
        file = tmp_path / "deepspeed/ops/op_builder/cpu/builder.py"
        file.parent.mkdir(parents=True)
        file.write_text(builder)
        (tmp_path / "cxx").write_text(f"#!/bin/sh\n{compiler}\n")
        os.chmod(tmp_path / "cxx", 0o755)
        if ninja:
            (tmp_path / "ninja").touch(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}" if ninja else str(tmp_path))
        monkeypatch.setenv("CXX", str(tmp_path / "cxx") if compiler else "no-such-compiler")
        monkeypatch.setattr(operators, "wheel", lambda: wheel)
        monkeypatch.setattr(operators, "_folder", lambda: tmp_path / "deepspeed")
    return make


@pytest.mark.parametrize(("operator", "given", "on_gpus", "torch", "reason"), [
    ("cpu_adam", {}, False, OLD, "takes C++14 where it needs C++17"),
    ("async_io", {}, False, OLD, f"cannot compile it for processors with torch {OLD}"),
    ("cpu_adam", {}, False, "2.11.0+cu130", ""), ("cpu_adam", {}, True, OLD + "+cu1", ""),
    ("async_io", {}, True, OLD + "+cu1", ""), ("async_io", {}, False, "2.11.0", ""),
    ("async_io", {"compiler": NO_LIBAIO}, True, "2.11.0", "libaio (libaio-dev) does not compile here"),
    ("async_io", {"compiler": NO_LIBAIO}, False, "2.11.0", "libaio (libaio-dev) does not compile here"),
    ("cpu_adam", {"compiler": ""}, True, "2.11.0", "no C++ compiler (no-such-compiler)"),
    ("fused_adam", {"ninja": False}, True, "2.11.0", "no ninja"), ("fused_adam", {}, True, "2.11.0", ""),
    ("cpu_adam", {"compiler": 'exec g++ "$@" -std=c++17'}, False, OLD, ""),
    ("cpu_adam", {"builder": "args = ['-O3', '-std=c++17']"}, False, OLD, ""),
    ("cpu_adam", {"wheel": FULL}, True, OLD, ""),
    ("cpu_adam", {"wheel": FULL}, False, OLD, "not prebuilt"),  # DeepSpeed takes none of another accelerator
    ("cpu_adam", {"wheel": FULL._replace(accelerator="cpu")}, False, OLD, "")])
def test_an_operator_is_built_or_can_be_compiled_or_is_missed(host, operator, given, on_gpus, torch, reason):
    host(**given)
    found = unavailable(operator, on_gpus, torch)
    assert reason in found and bool(found) is bool(reason)


@pytest.mark.parametrize(("variables", "compiler", "reason"), [
    ({"CFLAGS": "-DNAME='"}, None, "CFLAGS"), ({"LDFLAGS": '-L"/opt'}, None, "LDFLAGS"),
    # torch, which compiles for DeepSpeed, passes neither on.
    ({"CFLAGS": "-Werror -Wstrict-prototypes", "LDFLAGS": "/usr/lib/any.so"}, None, ""),
    ({"CFLAGS": "-I/it", "LDFLAGS": "-L/it"}, 'case "$*" in */it*) exec g++ "$@";; esac; exit 1', "libaio-dev"),
    ({}, r'printf "error: \351\n" >&2; exit 1', "error: \ufffd"),
    ({}, 'echo note >&2; echo "x.h: fatal error: gone" >&2; echo stopped >&2; exit 1', "(x.h: fatal error: gone)"),
    ({}, 'exec g++ "$@" -lnot-here', "cannot find -lnot-here"), ({}, 'exec g++ "$@"', "")])
def test_what_keeps_async_io_from_being_compiled_is_said(host, monkeypatch, variables, compiler, reason):
    host(compiler=compiler or 'exec g++ "$@"')
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = unavailable("async_io", True, "2.11.0")
    assert reason in found and bool(found) is bool(reason) and "\n" not in found


def test_a_compiler_that_hangs_or_has_no_room_ends_the_probe_alone(host, monkeypatch, tmp_path):
    host(compiler="exec sleep 60")
    monkeypatch.setattr(operators, "PROBE_SECONDS", 0.2)
    assert "no answer within 0.2 s" in unavailable("async_io", True, "2.11.0")
    monkeypatch.setattr(operators.tempfile, "tempdir", str(tmp_path / "gone"))
    assert "No such file or directory" in unavailable("async_io", True, "2.11.0")


def test_without_deepspeed_there_is_nothing_to_compile(host):
    host(wheel=None)
    assert unavailable("cpu_adam", False, OLD) == ""
