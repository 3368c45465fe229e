"""What must be true of a folder with a model before anything in it is loaded: it holds data, no programs, and is whole.

Weights are read from safetensors alone. Every other format that transformers knows is a pickle or a program at heart,
and loading one runs whatever its author wrote.
"""
from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from debzero.base.files import read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OTHERS = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "tf_model.h5", "flax_model.msgpack")
HEADER = 100_000_000  # bytes, the most that the safetensors library takes
POINTER = b"version https://git-lfs"
CONVERT = Path(__file__).resolve().parents[2] / "convert.py"


class Flaw(NamedTuple):
    """Why a folder cannot be used, and what to do about it."""

    reason: str
    fix: str


def flaws(folder: Path) -> list[Flaw]:
    """All that keeps the model in `folder`, which has a config.json, from being loaded."""
    return [*_programs(folder), *_weights(folder)]


def _programs(folder: Path) -> Iterator[Flaw]:
    """Code that transformers would run, and models that peft would fetch from elsewhere."""
    for name in ("config.json", "tokenizer_config.json"):
        if read_json(folder / name).get("auto_map"):
            yield Flaw(f"its {name} names code of its own (auto_map), which debzero never runs",
                       "use a model whose type transformers knows; it loads without auto_map if its model_type is one "
                       "of these")
    if (folder / "adapter_config.json").exists():
        yield Flaw("holds an adapter (adapter_config.json), which is no model",
                   "merge it into its model with peft's merge_and_unload() and save_pretrained(), and give that folder")


def _weights(folder: Path) -> Iterator[Flaw]:
    if os.path.lexists(folder / INDEX):
        yield from _shards(folder)
    elif os.path.lexists(folder / WEIGHTS):
        yield from _file(folder, WEIGHTS)
    elif found := sorted({path.name for pattern in OTHERS for path in folder.glob(pattern)}):
        yield Flaw(f"has its weights as {', '.join(found[:3])} alone: loading such a file runs what its author wrote",
                   f"if you trust it, convert it where it can do no harm: {conversion(folder)}")
    else:
        yield Flaw(f"has no weights ({WEIGHTS})", "copy the whole folder that save_pretrained wrote")


def conversion(folder: Path) -> str:
    """The command that reads the weights without the network, your files, or the right to write anything but the
    result."""
    name = f"debzero-{folder.name}"
    return (f"sudo systemd-run --pipe --wait -p DynamicUser=yes -p StateDirectory={name} -p PrivateNetwork=yes "
            f"-p ProtectSystem=strict -p ProtectHome=tmpfs -p BindReadOnlyPaths={folder} -p NoNewPrivileges=yes "
            f"{sys.executable} -I {CONVERT} {folder} /var/lib/{name}")


def _shards(folder: Path) -> Iterator[Flaw]:
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()) or not shards:
        yield Flaw(f"its {INDEX} has no weight_map", "copy the whole folder that save_pretrained wrote")
        return
    for name in sorted(set(shards.values())):
        if name != os.path.basename(name) or not name.endswith(".safetensors"):
            yield Flaw(f"its {INDEX} names {name!r}, which is no safetensors file of the folder",
                       "use a model that you trust")
        elif not os.path.lexists(folder / name):
            yield Flaw(f"its {INDEX} names {name}, which is not there", f"copy {name}, too")
        else:
            yield from _file(folder, name)


def _file(folder: Path, name: str) -> Iterator[Flaw]:
    again = f"copy {name} again"
    try:
        handle = os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        yield Flaw(f"its {name} cannot be read: {error.strerror}", again)
        return
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            yield Flaw(f"its {name} is no file", again)
            return
        start = file.read(len(POINTER))
        if start == POINTER:
            yield Flaw(f"its {name} is a Git LFS pointer, not the weights", "run `git lfs pull` in its repository")
            return
        size = int.from_bytes(start[:8], "little")
        file.seek(8)
        if len(start) < 8 or size > min(HEADER, status.st_size - 8) or not _is_header(file.read(size), status.st_size):
            yield Flaw(f"its {name} is no whole safetensors file", again)


def _is_header(header: bytes, size: int) -> bool:
    """Whether a safetensors header describes tensors that lie within a file of `size` bytes."""
    try:
        values: Any = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in values.items() if name != "__metadata__"]
    except (ValueError, RecursionError, AttributeError, KeyError, IndexError, TypeError):
        return False
    whole = all(isinstance(end, int) for end in ends)
    return whole and 8 + len(header) + max(ends, default=0) == size
