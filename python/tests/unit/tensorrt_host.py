"""A host with TensorRT, to the tests: stand-ins in place of TensorRT and CUDA, under the tests' own Python."""
import json
import sys
from pathlib import Path

from debzero.base.stack import stack
from debzero.predict import tensorrt_process

START = Path(__file__).resolve().parents[1] / "stand_ins" / "start.py"


def install(monkeypatch, **host) -> None:
    """From now on TensorRT is installed; `host`: what of it differs, see the stand-ins."""
    monkeypatch.setenv("STAND_IN_HOST", json.dumps({"tensorrt": stack().tensorrt, **host}))
    monkeypatch.setattr(tensorrt_process, "is_installed", lambda: True)
    monkeypatch.setattr(tensorrt_process, "command", lambda: [sys.executable, str(START),
                                                              str(tensorrt_process.SCRIPT)])
