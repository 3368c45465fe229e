"""Code for GPUs does not run here: at least every name of torch's that it uses is one that torch has."""
import ast
import importlib
from pathlib import Path

PYTHON = Path(__file__).resolve().parents[2]
CHECKED = {"torch", "numpy"}
NEWER = {"torch.compile", "torch.compiler"}  # than the pinned torch, and asked for before they are used


def imported(tree):
    """What a file calls each imported module that is checked, and its whole name."""
    names = {}
    for node in ast.walk(tree):
        for alias in node.names if isinstance(node, ast.Import) else ():
            first = alias.name.split(".")[0]
            if first in CHECKED:
                names[alias.asname or first] = alias.name if alias.asname else first
    return names


def dotted(node):
    """`a.b.c` as its parts; None for what does not begin with a name."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    return [node.id, *parts] if isinstance(node, ast.Name) else None


def exists(module, parts):
    found = importlib.import_module(module)
    for number, part in enumerate(parts):
        if not hasattr(found, part):
            try:
                importlib.import_module(".".join([module, *parts[:number + 1]]))
            except ImportError:
                return False
        found = getattr(found, part)
    return True


def unknown(source):
    tree = ast.parse(source)
    names = imported(tree)
    chains = {tuple(parts) for node in ast.walk(tree) if isinstance(node, ast.Attribute)
              and (parts := dotted(node)) and parts[0] in names}
    return {".".join([names[first], *parts]) for first, *parts in chains if not exists(names[first], parts)}


def test_an_unknown_name_is_found():
    assert unknown("import torch\nimport torch.distributed as dist\ntorch.cuda.currentdevice()\ndist.barrier()\n") == {
        "torch.cuda.currentdevice"}


def test_all_names_are_known():
    found = {name: str(file) for file in (PYTHON / "src").rglob("*.py") for name in unknown(file.read_text())}
    assert {name: file for name, file in found.items() if not name.startswith(tuple(NEWER))} == {}
