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
    ("async_io", {"compiler": NO_LIBAIO}, True, "2.11.0", "no libaio (libaio-dev)"),
    ("async_io", {"compiler": NO_LIBAIO}, False, "2.11.0", "no libaio (libaio-dev)"),
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


def test_without_deepspeed_there_is_nothing_to_compile(host):
    host(wheel=None)
    assert unavailable("cpu_adam", False, OLD) == ""
