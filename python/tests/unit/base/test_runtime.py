"""What the Python environment brings besides modules."""
import os
import shutil
import sys

from debzero.base import runtime


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
