"""Where a graph normalises layers: what must be computed in fp32 where all else is in fp16.

The square of what a layer hands on passes 65504 from 256 on, and the small number that keeps from dividing by 0 is 0 in
half precision. Opset 14 has no operator for it, so a norm is a chain of these.
"""
from __future__ import annotations

from pathlib import Path

# Of each operator in a norm, those that it hands its result to: the mean, the distance from it, its square, the mean of
# that, a small number added, the root, the quotient.
NEXT = {"ReduceMean": ("Sub", "Add"), "Sub": ("Pow", "Div"), "Pow": ("ReduceMean",), "Add": ("Sqrt",), "Sqrt": ("Div",)}


def layer_norms(graph: Path) -> list[str]:
    """The nodes of all norms, by their names, which are TensorRT's for its layers, too. Nodes without a name are given
    one, in the file."""
    from onnx import load, save

    model = load(str(graph))
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    save(model, str(graph))
    readers: dict[str, list[int]] = {}
    for number, node in enumerate(model.graph.node):
        for name in node.input:
            readers.setdefault(name, []).append(number)
    nodes = model.graph.node
    found: set[int] = set()
    waiting = [number for number, node in enumerate(nodes) if node.op_type == "ReduceMean"]
    while waiting:
        number = waiting.pop()
        if number not in found:
            found.add(number)
            waiting += [reader for output in nodes[number].output for reader in readers.get(output, ())
                        if nodes[reader].op_type in NEXT.get(nodes[number].op_type, ())]
    return [nodes[number].name for number in sorted(found)]
