"""What must be true of a folder with a model before anything in it is loaded: it holds data, no programs, and is whole.

Weights are read from safetensors alone. Every other format that transformers knows is a pickle or a program at heart,
and loading one runs whatever its author wrote.
"""
from __future__ import annotations

import json
import os
import shlex
import stat
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from debzero.base import reading
from debzero.base.files import read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = "pytorch_model*.bin"  # what convert.py reads
OTHERS = (PICKLES, "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "tf_model*", "*.gguf")
HEADER = 10_000_000  # bytes: a hundred thousand tensors, more than any shard has
DANGER = "loading such a file can run what its author wrote"
POINTER = b"version https://git-lfs"
CONVERT = Path(__file__).resolve().parents[2] / "convert.py"


def no_code() -> dict[str, bool]:
    """For each of transformers' loaders: run nothing that came with a model. Loaders within loaders (RagTokenizer's)
    are not passed this, and would ask on the terminal; without time for the answer they take it for a no."""
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    return {"trust_remote_code": False}


class Flaw(NamedTuple):
    """Why a folder cannot be used, and what to do about it."""

    reason: str
    fix: str


def flaws(folder: Path, weights: bool = True) -> list[Flaw]:
    """All that keeps the model in `folder`, which has a config.json, from being loaded. `weights`: whether they should
    be there already."""
    return [*_programs(folder), *_strange_files(folder), *(_weights(folder) if weights else ())]


def shards(folder: Path) -> list[str]:
    """The names of the files of weights, as far as the index is right."""
    if not os.path.lexists(folder / INDEX):
        return [WEIGHTS]
    named = read_json(folder / INDEX).get("weight_map")
    return sorted({str(name) for name in named.values()}) if isinstance(named, dict) else []


def other_weights(names: Iterable[str]) -> list[str]:
    """Which of the files hold weights in a format that debzero does not load."""
    return sorted(name for name in names if any(fnmatch(name, pattern) for pattern in OTHERS))


def _programs(folder: Path) -> Iterator[Flaw]:
    """Code that transformers would run or fetch, and models that peft would fetch from elsewhere."""
    known = _is_known(read_json(folder / "config.json").get("model_type"))
    for path in sorted(folder.rglob("*config.json")):
        name = path.relative_to(folder)
        try:
            values = reading.parse_json(reading.read_text(path, reading.STATE))
        except (OSError, ValueError) as error:  # transformers may read it all the same
            yield Flaw(f"its {name} {reading.why(error)}", "copy the whole folder again")
            continue
        for key, value, depth in _entries(values):
            # A model whose type transformers knows is built by transformers' own code.
            if key == "auto_map" and value and not (known and path.parent == folder and depth == 0):
                yield Flaw(f"its {name} names code of its own (auto_map), which debzero never runs",
                           "use a model whose model_type transformers knows")
            elif key.endswith("attn_implementation") and "/" in str(value):
                yield Flaw(f"its {name} names code on the hub ({key}: {value}), which debzero never runs",
                           f"delete {key} from {name}")
            elif key == "transformers_weights":
                yield Flaw(f"its {name} names the file of its weights itself ({key})", f"delete {key} from {name}")
    if os.path.lexists(folder / "adapter_config.json"):
        yield Flaw("it holds an adapter (adapter_config.json), which is no model",
                   "merge it into its model with peft's merge_and_unload() and save_pretrained(), and give that folder")


def _is_known(kind: Any) -> bool:
    from transformers import CONFIG_MAPPING

    return isinstance(kind, str) and kind in CONFIG_MAPPING


def _entries(value: Any, depth: int = 0) -> Iterator[tuple[str, Any, int]]:
    """Each key in JSON with its value, and the number of keys around it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner, depth
            yield from _entries(inner, depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item, depth + 1)


def _strange_files(folder: Path) -> Iterator[Flaw]:
    """What is no file, or leads out of the folder: its lines would become the vocabulary, and be saved with the model.
    In the hub's cache, files are links to ../../blobs."""
    real = folder.resolve()
    blobs = [real.parents[1] / "blobs"] if real.parent.name == "snapshots" else []
    for above, folders, files in os.walk(folder):
        for name in sorted([*folders, *files]):
            path = Path(above, name)
            target = Path(os.path.realpath(path))
            if path.is_symlink() and not any(root in (target, *target.parents) for root in [real, *blobs]):
                yield Flaw(f"its {path.relative_to(folder)} is a link that leads out of the folder",
                           f"put a copy of the file in its place, if {target} belongs to the model")
            elif name in files and not target.is_file():
                yield Flaw(f"its {path.relative_to(folder)} is no file", "copy the whole folder again")


def _weights(folder: Path) -> Iterator[Flaw]:
    if os.path.lexists(folder / WEIGHTS):  # transformers prefers it to the index
        yield from _file(folder, WEIGHTS)
    elif os.path.lexists(folder / INDEX):
        yield from _shards(folder)
    elif found := other_weights(path.name for path in folder.iterdir()):
        convertible = any(fnmatch(name, PICKLES) for name in found)
        yield Flaw(f"it has its weights as {', '.join(found[:3])} alone: {DANGER}",
                   f"if you trust it, convert it in a sandbox: {conversion(folder)}" if convertible else
                   "use a model with safetensors, or save this one so, with save_pretrained and on a host without "
                   "secrets")
    else:
        yield Flaw(f"it has no weights ({WEIGHTS})", "copy the whole folder that save_pretrained wrote")


def conversion(folder: Path) -> str:
    """The command that converts the weights in a sandbox. It is short: messages are wrapped."""
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(CONVERT))} {shlex.quote(str(folder))}"


def _shards(folder: Path) -> Iterator[Flaw]:
    names = shards(folder)
    if not names:
        yield Flaw(f"its {INDEX} has no weight_map", "copy the whole folder that save_pretrained wrote")
    for name in names:
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
            return  # _strange_files reports it
        start = file.read(len(POINTER))
        if start == POINTER:
            yield Flaw(f"its {name} is a Git LFS pointer, not the weights", "run `git lfs pull` in its repository")
            return
        size = int.from_bytes(start[:8], "little")
        file.seek(8)
        header = file.read(size) if len(start) >= 8 and size <= min(HEADER, status.st_size - 8) else b""
        origin = _origin(header, status.st_size)
        if origin is None:
            yield Flaw(f"its {name} is no whole safetensors file", again)
        elif origin != "pt":
            yield Flaw(f"its {name} was not written by PyTorch (its format is {origin!r})",
                       "load it with the program that wrote it, and save it with PyTorch")


def _origin(header: bytes, size: int) -> Any:
    """What a safetensors header says that its file of `size` bytes was written by; None where it does not describe
    tensors that fill the file."""
    try:
        values: Any = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in values.items() if name != "__metadata__"]
        origin = values.get("__metadata__", {}).get("format", "")
    except (ValueError, RecursionError, AttributeError, KeyError, IndexError, TypeError):
        return None
    whole = all(isinstance(end, int) for end in ends) and 8 + len(header) + max(ends, default=0) == size
    return origin if whole else None
