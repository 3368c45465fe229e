"""The process that has TensorRT, from debzero's side, and its engines with the interface of onnxruntime's sessions.

An engine takes the shapes of its profiles: a batch is padded to the narrowest of them that it fits, and divided where
it has more rows than that takes.
"""
from __future__ import annotations

import os
import subprocess
import weakref
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import numpy as np

from debzero.base import interpreter
from debzero.base.errors import HostError, UserError
from debzero.base.stack import stack
from debzero.base.text import printable
from debzero.predict import wire

SCRIPT = interpreter.SOURCE / "tensorrt_worker.py"
SPOKEN = 400  # bytes of what it printed before it died
NAMES = {"<i8": "tensor(int64)", "<i4": "tensor(int64)", "<f4": "tensor(float)", "<f2": "tensor(float16)"}


def python() -> Path:
    """The interpreter of the environment that the role tensorrt makes."""
    return Path(stack().tensorrt_venv, "bin", "python")


def is_installed() -> bool:
    return python().is_file()


def command() -> list[str]:
    """What starts the process. Raises a UserError where it is not installed."""
    if not is_installed():
        raise UserError("TensorRT is not installed on this host",
                        "install it with Ansible: `tensorrt_install: true`; see docs/export.md")
    return [str(python()), "-I", str(SCRIPT)]


class Process:
    """A process that builds and runs engines on one GPU; `host`: its GPU, driver and TensorRT. It ends with this
    object, or with its parent."""

    def __init__(self, device: int = 0) -> None:
        self.printed = os.memfd_create("tensorrt")
        self.child = subprocess.Popen(command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.printed)
        self.end = weakref.finalize(self, _end, self.child, self.printed)
        self.host: dict[str, str] = self.ask("start", device=device)[0]

    def ask(self, op: str, arrays: Optional[dict[str, np.ndarray]] = None, **message: Any
            ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Its answer. Raises a UserError for what it could not do, and a HostError where it died."""
        assert self.child.stdin is not None and self.child.stdout is not None
        try:
            wire.send(self.child.stdin, {"op": op, **message}, arrays)
            answer = wire.receive(self.child.stdout)
        except (OSError, EOFError):
            answer = None
        if answer is None:
            raise self._died()
        if "error" in answer[0]:
            raise UserError(f"TensorRT: {printable(str(answer[0]['error']))}",
                            "see `debzero doctor` for the GPU, and docs/export.md for what TensorRT needs; "
                            "`--to onnx` and `--engine onnx` do without it")
        return answer

    def _died(self) -> HostError:
        code = self.child.wait()
        printed = os.pread(self.printed, SPOKEN, max(0, os.fstat(self.printed).st_size - SPOKEN))
        said = printed.decode(errors="replace").strip().splitlines()[-1:]
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return HostError(f"the process of TensorRT {how}" + "".join(f": {printable(line)}" for line in said),
                         "if the host ran out of memory, free some; else run the role tensorrt again")


def _end(child: subprocess.Popen[bytes], printed: int) -> None:
    child.kill()
    child.wait()
    os.close(printed)
    for stream in filter(None, (child.stdin, child.stdout)):
        with suppress(OSError):
            stream.close()


class Session:
    """An engine in a process, called as onnxruntime's sessions are. `pad`: the token that fills texts up; `last`: of
    outputs with a row for each token, give the last token's alone."""

    def __init__(self, process: Process, file: Path, pad: int) -> None:
        self.process, self.pad, self.last = process, pad, False
        self._model_path = str(file)
        facts, _ = process.ask("load", engine=str(file))
        self.number, self.profiles = facts["number"], facts["profiles"]
        self.inputs: dict[str, str] = facts["inputs"]
        self.outputs: list[str] = facts["outputs"]

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name=name, type=NAMES[kind], shape=None) for name, kind in self.inputs.items()]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name=name, type="tensor(float)", shape=None) for name in self.outputs]

    def get_providers(self) -> list[str]:
        """Where inputs and outputs are: in the host's memory."""
        return ["CPUExecutionProvider"]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {"CPUExecutionProvider": {}}

    def run(self, names: Optional[list[str]], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of these names, or all. Raises a UserError for texts that are longer than any profile's."""
        number = self._profile(feeds)
        most = min(largest[0] for _, _, largest in self.profiles[number].values())
        rows = len(feeds["input_ids"])
        parts = [self._part(number, {name: each[start : start + most] for name, each in feeds.items()})
                 for start in range(0, rows, most)]
        return [np.concatenate([part[name] for part in parts]) for name in names or self.outputs]

    def _profile(self, feeds: dict[str, np.ndarray]) -> int:
        for number, shapes in enumerate(self.profiles):
            if all(feeds[name].shape[1] <= largest[1] for name, (_, _, largest) in shapes.items()):
                return number
        widths = {name: feeds[name].shape[1] for name in self.inputs}
        raise UserError(f"the engine was built for shorter texts than {max(widths.values())} tokens",
                        "use --engine onnx, or give it fewer tokens (--max-tokens)")

    def _part(self, number: int, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        width = feeds["input_ids"].shape[1]
        padded = {name: self._padded(name, feeds[name], largest[1])
                  for name, (_, _, largest) in self.profiles[number].items()}
        last = {"logits": width - 1} if self.last else {}
        _, made = self.process.ask("run", padded, number=self.number, profile=number, last=last)
        # Of each token, and so of what only fills up, too; other outputs are of whole texts.
        return {name: array if name in last or array.ndim < 3 else array[:, :width] for name, array in made.items()}

    def _padded(self, name: str, array: np.ndarray, width: int) -> np.ndarray:
        missing = [(0, 0), (0, width - array.shape[1]), *[(0, 0)] * (array.ndim - 2)]
        return np.pad(array, missing, constant_values=self.pad if name == "input_ids" else 0)
