"""A model as ONNX graphs: traced by torch's exporter, or where it writes texts by optimum's, with the keys and values
of earlier tokens as inputs and outputs."""
from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from debzero.base.errors import UserError
from debzero.predict.engine_onnx import MODEL, PARTS
from debzero.predict.trained import Trained

OPSET = 14             # what torch 1.13 exports safely, and onnxruntime and TensorRT of its time read
LARGEST = 2**31 - 2**24  # bytes of a graph with its weights: protobuf takes no message of 2 GiB
TASKS = {"causal-lm": "text-generation", "text-to-text": "text2text-generation"}


def names(trained: Trained, cache: bool = True) -> tuple[str, ...]:
    """The graphs' files."""
    return (PARTS if cache else PARTS[:2]) if trained.task == "text-to-text" else (MODEL,)


def axes(graph: Path) -> dict[str, list[Any]]:
    """{input or output: its axes}: a number, or the name of one that may have any length."""
    from onnx import load

    of = load(str(graph), load_external_data=False).graph
    return {each.name: [axis.dim_param or axis.dim_value for axis in each.type.tensor_type.shape.dim]
            for each in [*of.input, *of.output]}


def write(trained: Trained, model: Any, example: dict[str, Any], folder: Path, cache: bool = True) -> None:
    """Write the graphs of `model`, transformers' own on the CPU, in fp32, into `folder`. `example`: a batch of at least
    two rows; `cache`: whether a model that writes takes and gives the keys and values of earlier tokens. Raises a
    UserError for a model that cannot be exported."""
    size = sum(each.numel() * each.element_size() for each in model.parameters())
    if size > LARGEST:
        raise UserError(f"the model's weights are {size / 2**30:.1f} GiB, and a graph of ONNX holds 2",
                        "use it with `debzero predict --engine torch`")
    with quiet(), _explained(trained):
        if trained.task in TASKS:
            from optimum.exporters.onnx import onnx_export_from_model

            task = TASKS[trained.task] + ("-with-past" if cache else "")
            onnx_export_from_model(model, folder, opset=OPSET, task=task, do_validation=False, no_post_process=True,
                                   device="cpu")
        else:
            _trace(model, example, folder / MODEL)


def _trace(model: Any, example: dict[str, Any], file: Path) -> None:
    import torch

    class Logits(torch.nn.Module):
        """The model with its inputs in order and one output."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            return self.model(**dict(zip(example, inputs))).logits

    axes = {name: {0: "batch", 1: "sequence"} for name in example}
    tracing = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    torch.onnx.export(Logits().eval(), tuple(example.values()), str(file), input_names=[*example],
                      output_names=["logits"], opset_version=OPSET,
                      dynamic_axes={**axes, "logits": {0: "batch"}}, **tracing)


@contextmanager
def _explained(trained: Trained) -> Iterator[None]:
    try:
        yield
    except (UserError, MemoryError, OSError):
        raise
    except Exception as error:  # of many types, for an operation or a kind of model that there is no export of
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"a {trained.config.model_type} model for {trained.task} cannot be exported with these "
                        f"versions: {first[:300]}", "use the model with `debzero predict --engine torch`") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters and optimisers remark: the comparison with the original decides."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
