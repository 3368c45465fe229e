"""How large the values in a graph become. onnxruntime computes half precision on a CPU in single precision wherever it
has no other operator, and so overflows nowhere: where the values themselves are looked at, it shows what a GPU would
do."""
from __future__ import annotations

from pathlib import Path
from typing import Any

MASKS = -200_000.0  # two masks of -65504 each, and what they were added to
# Whose results may grow, of those that compute in the graph's precision.
GROWING = {"MatMul", "Gemm", "Add", "Mul", "Pow", "ReduceMean", "Attention", "MultiHeadAttention", "BiasGelu", "Gelu",
           "FastGelu", "Relu", "SkipLayerNormalization", "EmbedLayerNormalization", "LayerNormalization",
           "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"}
HIGHEST, LOWEST = "debzero_highest_", "debzero_lowest_"


def watch(graph: Path, watched: Path) -> None:
    """Write a copy of a graph that also gives the highest and the lowest value of each such result."""
    from onnx import TensorProto, helper, load, save

    model = load(str(graph))
    for number, node in enumerate([node for node in model.graph.node if node.op_type in GROWING]):
        as_float = f"debzero_float_{number}"
        model.graph.node.append(helper.make_node("Cast", [node.output[0]], [as_float], to=TensorProto.FLOAT))
        for name, operator in ((HIGHEST, "ReduceMax"), (LOWEST, "ReduceMin")):
            model.graph.node.append(helper.make_node(operator, [as_float], [f"{name}{number}"], keepdims=0))
            model.graph.output.append(helper.make_tensor_value_info(f"{name}{number}", TensorProto.FLOAT, []))
    save(model, str(watched))


class Ranged:
    """A session of a watched graph, in the place of that of the graph itself. `peak`: the largest size of a value so
    far. What masks make very low on purpose does not count."""

    def __init__(self, session: Any) -> None:
        self.session, self.peak = session, 0.0
        self.own = [each.name for each in session.get_outputs() if not each.name.startswith((HIGHEST, LOWEST))]

    def run(self, names: Any, feeds: dict[str, Any]) -> list[Any]:
        wanted = [each.name for each in self.session.get_outputs()]
        outputs = dict(zip(wanted, self.session.run(wanted, feeds)))
        for name, value in outputs.items():
            if name.startswith(HIGHEST):
                self.peak = max(self.peak, float(value))
            elif name.startswith(LOWEST) and float(value) < MASKS:
                self.peak = max(self.peak, -float(value))
        return [outputs[name] for name in names or self.own]

    def get_inputs(self) -> Any:
        return self.session.get_inputs()

    def get_outputs(self) -> Any:
        return [each for each in self.session.get_outputs() if each.name in self.own]


def watched_sessions(model: Any) -> list[Ranged]:
    """The sessions of a model of engine_onnx, now watched."""
    found = []
    for owner in [model, *(getattr(model, name, None) for name in ("encoder", "decoder", "decoder_with_past"))]:
        for name in ("session", "model"):
            if hasattr(getattr(owner, name, None), "get_outputs"):
                found.append(Ranged(getattr(owner, name)))
                setattr(owner, name, found[-1])
    return found
