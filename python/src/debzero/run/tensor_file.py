"""Trees of tensors and plain values, each as one safetensors file: what checkpoints are made of.

torch.save writes pickle, and whoever writes a pickle decides what runs when it is loaded. Here the tensors are stored
as safetensors, and the tree around them as JSON in the file's metadata. Python's containers and torch's plain types
have names of their own in it, and so have the few classes of DeepSpeed that it keeps in its states (CLASSES): no name
in a file leads to anything else.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Callable

from debzero.base import own_files
from debzero.base.files import created

# DeepSpeed's, in release 0.15 and current ones: class -> module.
CLASSES = {
    "LossScaler": "deepspeed.runtime.fp16.loss_scaler",
    "DynamicLossScaler": "deepspeed.runtime.fp16.loss_scaler",
    "fragment_address": "deepspeed.utils.tensor_fragment",
    "ZeroStageEnum": "deepspeed.runtime.zero.config",
}
PLAIN = (type(None), bool, int, float, str)
DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
          "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL"}
ALIGNMENT = 8  # bytes


def write(path: Path, tree: Any) -> None:
    """Write the new file `path`. Raises a TypeError where the tree holds anything else than this module knows.

    safetensors' own writer takes a copy of all tensors at once. This one needs host memory for the largest alone,
    where the tensors are on a device.
    """
    tensors: dict[str, Any] = {}
    stored = json.dumps(_Encoder(tensors).encode(tree, ""))
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))  # so that all are aligned
    header: dict[str, Any] = {"__metadata__": {"tree": stored}}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[_dtype(tensor.dtype)], "shape": list(tensor.shape),
                        "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with created(path, 0o644) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            _write_tensor(file, tensor)


def _write_tensor(file: IO[bytes], tensor: Any) -> None:
    import torch

    if tensor.numel():
        file.write(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


class _Encoder:
    """Turns a tree into JSON's values, and puts its tensors into `tensors` under names made of their paths."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        self.tensors = tensors
        self.known: dict[Any, str] = {}  # tied weights are stored once

    def encode(self, value: Any, path: str) -> Any:
        import numpy as np
        import torch

        if type(value) in PLAIN:
            return value
        if isinstance(value, torch.Tensor):
            return {"tensor": self._named(value.detach(), path)}
        if isinstance(value, torch.Size):
            return {"size": list(value)}
        if isinstance(value, torch.dtype):
            return {"dtype": _dtype(value)}
        if isinstance(value, np.generic):
            return self.encode(value.item(), path)
        if type(value) is list:
            return self._all(value, path)
        if type(value) in (tuple, set):
            return {type(value).__name__: self._all(value, path)}
        if isinstance(value, Mapping):
            if all(type(key) is str for key in value):
                return {"dict": {key: self.encode(one, f"{path}/{key}") for key, one in value.items()}}
            return {"items": [[self.encode(key, path), self.encode(one, f"{path}/{key}")]
                              for key, one in value.items()]}
        return self._object(value, path)

    def _all(self, values: Any, path: str) -> list[Any]:
        return [self.encode(one, f"{path}/{number}") for number, one in enumerate(values)]

    def _object(self, value: Any, path: str) -> dict[str, Any]:
        kind = type(value)
        if CLASSES.get(kind.__name__) != kind.__module__:
            raise TypeError(f"a checkpoint cannot hold {path.lstrip('/')}: it is a {kind.__module__}.{kind.__name__}")
        return {kind.__name__: self.encode(value.value if isinstance(value, Enum) else vars(value), path)}

    def _named(self, tensor: Any, path: str) -> str:
        import torch

        if tensor.layout != torch.strided or _dtype(tensor.dtype) not in DTYPES:
            raise TypeError(f"a checkpoint cannot hold {path.lstrip('/')}: it is a {tensor.layout} tensor of "
                            f"{_dtype(tensor.dtype)}")
        same = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        name = self.known.get(same) if tensor.numel() else None
        if name is None:
            name = path.lstrip("/") or "tensor"
            while name in self.tensors:
                name += "'"
            self.tensors[name] = tensor
            self.known[same] = name
        return name


def _dtype(dtype: Any) -> str:
    return str(dtype).partition(".")[2]


def read(path: Path) -> Any:
    """The tree in `path`, with its tensors on the host. Raises a ForeignFileError where the file is not this user's
    own, and safetensors' error, a ValueError or a KeyError where it is not what `write` writes."""
    from safetensors import safe_open

    with own_files.opened(path) as own, safe_open(f"/proc/self/fd/{own.fileno()}", framework="pt") as file:
        tensors: dict[str, Any] = {}

        def tensor(name: str) -> Any:
            if name not in tensors:
                tensors[name] = file.get_tensor(name).clone()  # what it returns is mapped from the file
            return tensors[name]

        return _decode(json.loads((file.metadata() or {})["tree"]), tensor)


def _decode(value: Any, tensor: Callable[[str], Any]) -> Any:
    """What _Encoder.encode made of a value; `tensor` gives the tensor of a name."""
    import torch

    if isinstance(value, list):
        return [_decode(one, tensor) for one in value]
    if not isinstance(value, dict):
        return value
    (kind, content), = value.items()
    if kind == "tensor":
        return tensor(content)
    if kind == "size":
        return torch.Size(content)
    if kind == "dtype":
        return {name: getattr(torch, name) for name in DTYPES}[content]
    if kind == "dict":
        return {key: _decode(one, tensor) for key, one in content.items()}
    if kind == "items":
        return {_decode(key, tensor): _decode(one, tensor) for key, one in content}
    if kind in ("tuple", "set"):
        return {"tuple": tuple, "set": set}[kind](_decode(content, tensor))
    made = getattr(import_module(CLASSES[kind]), kind)
    if issubclass(made, Enum):
        return made(content)
    found = made.__new__(made)
    vars(found).update(_decode(content, tensor))
    return found
