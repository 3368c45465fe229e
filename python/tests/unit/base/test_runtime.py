"""What the Python environment brings besides modules."""
import dataclasses
import os
import shutil
import sys

from debzero.base import runtime
from debzero.base.stack import stack


def test_ninja_of_the_environment_is_found_without_its_activation(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ninja").touch(0o755)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    assert shutil.which("ninja") is None
    runtime.find_own_programs()
    runtime.find_own_programs()
    assert os.environ["PATH"] == f"/nowhere:{tmp_path}/bin" and shutil.which("ninja")
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.delenv("PATH")
    runtime.find_own_programs()
    assert "PATH" not in os.environ


def test_where_it_is_missing_one_command_is_named(monkeypatch, tmp_path):
    pins = dataclasses.replace(stack(), prefix=str(tmp_path), venv=f"{tmp_path}/venv")
    monkeypatch.setattr(runtime, "stack", lambda: pins)
    assert runtime.missing()[1] == "apt install debzero-runtime"
    (tmp_path / "requirements.lock").touch()  # as the role torch_venv leaves it
    assert runtime.missing()[1] == "run `ansible-playbook playbooks/runtime.yml` in a checkout of debzero"
