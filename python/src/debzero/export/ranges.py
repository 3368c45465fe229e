"""How large the values in a graph become. onnxruntime computes half precision on a CPU in single precision wherever it
has no other operator, and so overflows nowhere: where the values themselves are looked at, it shows what a GPU would
do."""
from __future__ import annotations

from pathlib import Path
from typing import Any

# The operators whose results may grow, of those that compute in the graph's precision. What others make very low is
# mostly meant so: a mask, the logarithm of 0.
PRODUCTS = {"MatMul", "Gemm", "Attention", "MultiHeadAttention", "BiasGelu", "Gelu", "FastGelu", "Relu",
            "SkipLayerNormalization", "EmbedLayerNormalization", "LayerNormalization", "SimplifiedLayerNormalization",
            "SkipSimplifiedLayerNormalization"}
OTHERS = {"Add", "Mul", "Pow", "ReduceMean"}
HIGHEST, LOWEST = "debzero_highest_", "debzero_lowest_"


def watch(graph: Path, watched: Path) -> None:
    """Write a copy of a graph that also gives the highest and the lowest value of each such result."""
    from onnx import TensorProto, helper, load, save

    model = load(str(graph))
    for number, node in enumerate([node for node in model.graph.node if node.op_type in PRODUCTS | OTHERS]):
        as_float = f"debzero_float_{number}"
        model.graph.node.append(helper.make_node("Cast", [node.output[0]], [as_float], to=TensorProto.FLOAT))
        looked_at = [(HIGHEST, "ReduceMax"), *([(LOWEST, "ReduceMin")] if node.op_type in PRODUCTS else [])]
        for name, operator in looked_at:
            model.graph.node.append(helper.make_node(operator, [as_float], [f"{name}{number}"], keepdims=0))
            model.graph.output.append(helper.make_tensor_value_info(f"{name}{number}", TensorProto.FLOAT, []))
    save(model, str(watched))


class Ranged:
    """A session of a watched graph, in the place of that of the graph itself. `peak`: the largest size of a value so
    far."""

    def __init__(self, session: Any) -> None:
        self.session, self.peak = session, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, names: Any, feeds: dict[str, Any]) -> list[Any]:
        every = [each.name for each in self.session.get_outputs()]
        outputs = dict(zip(every, self.session.run(every, feeds)))
        for name, value in outputs.items():
            if name.startswith((HIGHEST, LOWEST)):
                self.peak = max(self.peak, float(value) if name.startswith(HIGHEST) else -float(value))
        return [outputs[name] for name in names or every]


def watched_sessions(model: Any) -> list[Ranged]:
    """The sessions of a model of engine_onnx, now watched."""
    found = []
    for owner in [model, *(getattr(model, name, None) for name in ("encoder", "decoder", "decoder_with_past"))]:
        for name in ("session", "model"):
            if hasattr(getattr(owner, name, None), "get_outputs"):
                found.append(Ranged(getattr(owner, name)))
                setattr(owner, name, found[-1])
    return found
