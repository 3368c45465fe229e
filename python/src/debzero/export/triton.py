"""An export as a model repository of NVIDIA's Triton Inference Server: NAME/config.pbtxt, NAME/labels.txt and, as
version NAME/1, the export itself."""
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from debzero.base.errors import InputError, Problem
from debzero.base.files import write_text
from debzero.base.text import printable
from debzero.predict.engine_onnx import MODEL
from debzero.predict.trained import Trained

VERSION = "1"
LABELS = "labels.txt"
MOST_ROWS = 64       # of a batch
WAITS = 1000         # microseconds in which the requests for a batch come
KINDS = {"int8": "KIND_CPU", "fp16": "KIND_GPU"}  # where a precision belongs; Triton chooses for others


def check(model: Trained, to: str) -> None:
    """Raises an InputError for a model that Triton cannot ask by itself, and for another format than ONNX."""
    if to != "onnx":
        raise InputError([Problem("the command line", "--layout", f"triton is for exports to ONNX, not to {to}",
                                  "use --to onnx, or leave --layout out")])
    if model.writes or model.task == "text-to-text":
        raise InputError([Problem("the command line", "--layout", "triton is for models of classes and of numbers, and "
                                  f"this one's task is {model.task}: its answers take a loop around the graphs",
                                  "export it without --layout, and use the code in its README in a server")])


def name_of(model: Trained) -> str:
    """What clients call it."""
    return re.sub(r"[^\w.-]", "_", model.folder.parent.name, flags=re.ASCII)


def other_versions(folder: Path) -> list[str]:
    """The versions, which are folders with numbers as names, of the model in `folder` that are not VERSION."""
    return sorted(path.name for path in folder.glob("[0-9]*") if path.name.isdecimal() and path.name != VERSION)


def write(folder: Path, model: Trained, precision: str) -> None:
    """Add to `folder`, in which the export is VERSION, what Triton reads beside it."""
    write_text(folder / "config.pbtxt", config(name_of(model), folder / VERSION / MODEL, bool(model.labels), precision))
    if model.labels:
        write_text(folder / LABELS, "".join(f"{printable(label)}\n" for label in model.labels))


def config(name: str, graph: Path, labels: bool, precision: str) -> str:
    """A ModelConfig as protobuf's text. Its first dimension, that of the batch, is Triton's own and not listed."""
    from onnx import load

    of = load(str(graph), load_external_data=False).graph
    kind = KINDS.get(precision)
    return "\n".join([
        f"name: {json.dumps(name)}", 'platform: "onnxruntime_onnx"', f"max_batch_size: {MOST_ROWS}",
        *(line for each in of.input for line in _tensor("input", each)),
        *(line for each in of.output for line in _tensor("output", each, labels)),
        f"dynamic_batching {{ max_queue_delay_microseconds: {WAITS} }}",
        *([f"instance_group [ {{ kind: {kind} }} ]"] if kind else []), ""])


def _tensor(key: str, tensor: Any, labels: bool = False) -> list[str]:
    from onnx import TensorProto

    types = {TensorProto.INT64: "TYPE_INT64", TensorProto.FLOAT: "TYPE_FP32", TensorProto.FLOAT16: "TYPE_FP16"}
    of = tensor.type.tensor_type
    sizes = ", ".join(str(axis.dim_value or -1) for axis in list(of.shape.dim)[1:])
    named = [f'    label_filename: "{LABELS}"'] if labels else []
    return [f"{key} [", "  {", f"    name: {json.dumps(tensor.name)}", f"    data_type: {types[of.elem_type]}",
            f"    dims: [ {sizes} ]", *named, "  }", "]"]
