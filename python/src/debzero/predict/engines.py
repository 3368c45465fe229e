"""The engines by their names on the command line, whose parser reads this: nothing but the standard library is imported
before an engine is asked for."""
from __future__ import annotations

from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from debzero.predict.engine import Choice, Engine
    from debzero.predict.trained import Trained


def _torch(trained: Trained, choice: Choice) -> Engine:
    from debzero.predict.engine_torch import TorchEngine

    return TorchEngine(trained, choice)


def _compiled(trained: Trained, choice: Choice) -> Engine:
    from debzero.predict.engine_compiled import CompiledEngine

    return CompiledEngine(trained, choice)


def _onnx(trained: Trained, choice: Choice) -> Engine:
    from debzero.predict.engine_onnx import OnnxEngine

    return OnnxEngine(trained, choice)


def _tensorrt(trained: Trained, choice: Choice) -> Engine:
    from debzero.predict.engine_tensorrt import TensorRTEngine

    return TensorRTEngine(trained, choice)


ENGINES: dict[str, Callable[[Trained, Choice], Engine]] = {
    "torch": _torch, "compiled": _compiled, "onnx": _onnx, "tensorrt": _tensorrt}
EXPORTED = ("onnx", "tensorrt")  # those of an export of the model
