"""A model's graphs as TensorRT's engines, built on the GPU that will answer.

One profile for each length of texts: the width is fixed in each, and only the number of rows is open, for TensorRT is
slow where several axes are. So a batch is padded to the next of these widths.
"""
from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from debzero.base.errors import InputError, Problem
from debzero.base.stack import stack
from debzero.export import graphs
from debzero.export.norms import layer_norms
from debzero.predict.engine_tensorrt import ROWS, engine_name
from debzero.predict.tensorrt_process import Process
from debzero.predict.trained import LONGEST, Trained
from debzero.resolve.precision import OVERFLOWING

NARROWEST = 32        # tokens; half of them are hardly faster
LIKELIEST = 32        # rows that an engine is tuned for
NUMBERS = 2**27       # in the logits of a batch at most: 512 MiB on the GPU, and on their way from it
WORKSPACE = 4 * 2**30  # bytes of the GPU's memory that TensorRT may try algorithms in, and answer in
Profile = dict[str, list[list[int]]]


def check(trained: Trained, precision: str) -> None:
    """Raises an InputError for what is known to fail."""
    if precision == "fp16" and trained.config.model_type in OVERFLOWING:
        raise InputError([Problem(
            "the command line", "--precision", "fp16 is wrong for models of the T5 family: their activations pass half "
            f"precision's largest number, and TensorRT {stack().tensorrt} with CUDA {stack().cuda} answers wrongly",
            "use --precision fp32, or --to onnx")])


def write(trained: Trained, model: Any, example: dict[str, Any], precision: str, folder: Path
          ) -> dict[str, Any]:
    """Write the engines of `model` into `folder`; what the record says of them. Raises a UserError for a model that has
    none."""
    process = Process()
    kept: dict[str, int] = {}
    shapes: dict[str, list[Profile]] = {}
    with TemporaryDirectory(dir=folder, prefix=".graphs-") as name:
        graphs.write(trained, model, example, Path(name), cache=False)
        for graph in graphs.names(trained, cache=False):
            file = Path(name, graph)
            keep = layer_norms(file) if precision == "fp16" else []
            engine = engine_name(graph)
            shapes[engine], kept[engine] = profiles(trained, graphs.axes(file)), len(keep)
            print(f"building {engine} for {process.host['gpu']}: this takes minutes", file=sys.stderr, flush=True)
            process.ask("build", graph=str(file), engine=str(folder / engine), precision=precision, keep=keep,
                        workspace=WORKSPACE, profiles=shapes[engine])
    return {"built_for": process.host, "layers_in_fp32": kept, "profiles": shapes}


def profiles(trained: Trained, axes: dict[str, list[Any]]) -> list[Profile]:
    """Of a graph, one for each width of texts: {input: its smallest, likeliest and largest shape}. `axes`: {input or
    output: its axes}, numbers or names."""
    inputs = {name: shape for name, shape in axes.items() if name not in ("logits", "last_hidden_state")}
    answer = _eighth(trained.limit + 1)
    found = []
    for width in widths(trained):
        longest = answer if "encoder_hidden_states" in inputs else width
        rows = ROWS if not trained.continues and trained.task != "text-to-text" else max(
            1, min(ROWS, NUMBERS // (longest * int(trained.config.vocab_size))))
        fixed = {name: [width if name.startswith("encoder_") else longest, *shape[2:]]
                 for name, shape in inputs.items()}
        found.append({name: [[count, *rest] for count in (1, min(LIKELIEST, rows), rows)]
                      for name, rest in fixed.items()})
    return found


def widths(trained: Trained) -> list[int]:
    """Those of the profiles: doubled from the narrowest on, up to all that the model takes."""
    most = trained.positions or max(trained.inputs.max_length, LONGEST) if trained.continues else min(
        trained.inputs.max_length, trained.positions or trained.inputs.max_length)
    found: list[int] = []
    while not found or found[-1] < most:
        found.append(min(most, 2 * found[-1] if found else NARROWEST))
    return found


def _eighth(count: int) -> int:
    return -(-count // 8) * 8
