"""What onnxruntime's own tools make of a graph: operators of a Transformer in one, half precision, 8-bit integers."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# onnxruntime's names for the families whose patterns it knows. Those of BERT's encoders fit most others; what it would
# fuse in T5 has no operator for a CPU.
FAMILIES = {"gpt2": "gpt2", "bart": "bart"}


def optimise(graph: Path, config: Any, precision: str) -> None:
    """Rewrite a graph in place. `config`: the model's configuration."""
    from onnxruntime.transformers.optimizer import optimize_model

    fused = optimize_model(
        str(graph), model_type=FAMILIES.get(config.model_type, "bert"), opt_level=0,
        num_heads=getattr(config, "num_attention_heads", 0), hidden_size=getattr(config, "hidden_size", 0))
    if precision == "fp16":
        fused.convert_float_to_float16(keep_io_types=True)
    fused.save_model_to_file(str(graph))
    if precision == "int8":
        _quantise(graph)


def _quantise(graph: Path) -> None:
    from onnx import TensorProto
    from onnxruntime.quantization import quantize_dynamic

    written = graph.with_suffix(".int8")
    # Of onnxruntime's own operators, the fused ones, its quantiser does not know the type.
    quantize_dynamic(str(graph), str(written), per_channel=True, extra_options={"DefaultTensorType": TensorProto.FLOAT})
    os.replace(written, graph)
