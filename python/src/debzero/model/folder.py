"""What must be true of a folder with a model before anything in it is loaded: it holds data, no programs, and is whole.

Weights are read from safetensors alone. Every other format that transformers knows is a pickle or a program at heart,
and loading one runs whatever its author wrote.
"""
from __future__ import annotations

import json
import os
import re
import shlex
import stat
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple, Optional

from debzero.base import reading
from debzero.base.files import read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = "pytorch_model*.bin"  # what convert.py reads
OTHERS = (PICKLES, "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "tf_model*")
SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")
HEADER = 10_000_000  # bytes: a hundred thousand tensors, more than any shard has
DANGER = "loading such a file can run what its author wrote"
PULL = "run `git lfs pull` in its repository"
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
    found = [*_strange_files(folder)]
    found += _pointers(folder) if not found else ()
    found += _programs(folder) if not found else ()
    return [*found, *(() if found else _kind(folder)), *(_weights(folder) if weights else ())]


def shards(folder: Path) -> list[str]:
    """The names of the files of weights, as far as the index is right."""
    if not os.path.lexists(folder / INDEX):
        return [WEIGHTS]
    named = read_json(folder / INDEX).get("weight_map")
    return sorted({str(name) for name in named.values()}) if isinstance(named, dict) else []


def weight_files(folder: Path) -> list[str]:
    """The names of the files that transformers reads: it prefers a single one to an index."""
    return [WEIGHTS] if os.path.lexists(folder / WEIGHTS) else shards(folder)


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
        yield adapter(folder)


def adapter(folder: Path) -> Flaw:
    """What to say of a folder that peft wrote."""
    base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    made = f" of {base[:80]}" if isinstance(base, str) and base else ""
    return Flaw(f"it holds an adapter{made} (adapter_config.json), which is no model",
                "merge it into its model with peft's merge_and_unload() and save_pretrained(), save the tokenizer "
                "there, too, and give that folder")


def _kind(folder: Path) -> Iterator[Flaw]:
    """What the configuration says of the whole model. Its own code has been looked for before."""
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind is None:
        yield Flaw("its config.json names no model_type",
                   "give a folder that save_pretrained of transformers wrote" if config else "copy config.json again")
    elif not _is_known(kind):
        import transformers

        yield Flaw(f"transformers {transformers.__version__} knows no models of the type {str(kind)[:80]!r}",
                   "use a model of a type that it knows, such as bert, roberta, gpt2 or t5")
    for key in ("quantization_config", "compression_config"):
        if config.get(key):
            values = config[key] if isinstance(config[key], dict) else {}
            method = str(values.get("quant_method", values.get("format", "")))[:40]
            yield Flaw(f"its weights are quantised ({' '.join(filter(None, [key, method]))}), and such weights cannot "
                       "be trained", "use the model that they were made from, in bf16, fp16 or fp32")


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


def _pointers(folder: Path) -> Iterator[Flaw]:
    """Files of a repository that was cloned without Git LFS. Those of the weights are judged with them."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix != ".safetensors" and os.path.getsize(path) < 1024:
            with open(path, "rb") as file:
                if file.read(len(reading.LFS_POINTER)) == reading.LFS_POINTER:
                    yield Flaw(f"its {path.name} is a Git LFS pointer, not the file itself", PULL)


def _weights(folder: Path) -> Iterator[Flaw]:
    if os.path.lexists(folder / WEIGHTS):  # transformers prefers it to the index
        yield from _file(folder, WEIGHTS)
    elif os.path.lexists(folder / INDEX):
        yield from _shards(folder)
    elif flaw := weights_to_run_alone(folder):
        yield flaw
    elif found := other_weights(path.name for path in folder.iterdir()):
        convertible = any(fnmatch(name, PICKLES) for name in found)
        yield Flaw(f"it has its weights as {', '.join(found[:3])} alone: {DANGER}",
                   f"if you trust it, convert it in a sandbox: {conversion(folder)}" if convertible else
                   "use a model with safetensors, or save this one so, with save_pretrained and on a host without "
                   "secrets")
    elif found := sorted(path.name for path in folder.glob("*.safetensors")):
        yield Flaw(f"it has {', '.join(found[:3])}, but neither {WEIGHTS} nor {INDEX}", f"copy {INDEX} as well" if
                   SHARD.search(found[0]) else "save the model again, with save_pretrained")
    else:
        yield Flaw(f"it has no weights ({WEIGHTS})", "copy the whole folder that save_pretrained wrote")


def weights_to_run_alone(folder: Path) -> Optional[Flaw]:
    """What is wrong with a folder whose weights are of programs that only run models."""
    found = sorted(path.name for path in folder.iterdir() if path.suffix in (".gguf", ".onnx"))
    return Flaw(f"it has its weights as {', '.join(found[:3])}, for programs that run a model and do not train it",
                "use the model that these were made from, with safetensors") if found else None


def conversion(folder: Path) -> str:
    """The command that converts the weights in a sandbox. It is short: messages are wrapped."""
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(CONVERT))} {shlex.quote(str(folder))}"


def _shards(folder: Path) -> Iterator[Flaw]:
    names = shards(folder)
    if not names:
        yield Flaw(f"its {INDEX} has no weight_map", "copy the whole folder that save_pretrained wrote")
    whole = True
    for name in names:
        found = []
        if name != os.path.basename(name) or not name.endswith(".safetensors"):
            found = [Flaw(f"its {INDEX} names {name!r}, which is no safetensors file of the folder",
                          "use a model that you trust")]
        elif not os.path.lexists(folder / name):
            found = [Flaw(f"its {INDEX} names {name}, which is not there", f"copy {name}, too")]
        else:
            found = list(_file(folder, name))
        yield from found
        whole = whole and not found
    if names and whole:
        yield from _misplaced(folder)
        if not isinstance(read_json(folder / INDEX).get("metadata"), dict):
            yield Flaw(f"its {INDEX} has no metadata, without which transformers does not read it",
                       f'add "metadata": {{}} to {INDEX}')


def _misplaced(folder: Path) -> Iterator[Flaw]:
    """transformers would take a tensor that the index promises for loaded, whether it is there or not."""
    places: dict[str, Any] = read_json(folder / INDEX)["weight_map"]
    held = {name: header(folder / name) or {} for name in shards(folder)}
    lost = sorted(tensor for tensor, name in places.items() if tensor not in held[str(name)])
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        yield Flaw(f"its {INDEX} says that {places[lost[0]]} holds {lost[0]}{more}, which it does not",
                   "copy the index and all shards again, from the same model")


def _file(folder: Path, name: str) -> Iterator[Flaw]:
    again = f"copy {name} again"
    try:
        handle = os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        yield Flaw(f"its {name} cannot be read: {error.strerror}", again)
        return
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return  # _strange_files reports it
        if file.read(len(reading.LFS_POINTER)) == reading.LFS_POINTER:
            yield Flaw(f"its {name} is a Git LFS pointer, not the weights", PULL)
            return
    values = header(folder / name)
    if values is None:
        yield Flaw(f"its {name} is no whole safetensors file", again)
        return
    origin = values.get("__metadata__", {}).get("format", "")
    if origin != "pt":
        yield Flaw(f"its {name} was not written by PyTorch (its format is {origin!r})",
                   "load it with the program that wrote it, and save it with PyTorch")


def header(path: Path) -> Optional[dict[str, Any]]:
    """The header of a safetensors file: its tensors' types, shapes and places. None where the file is not what its
    header says, by the library's own checks."""
    from safetensors import SafetensorError, safe_open

    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > HEADER:  # the library takes ten times as much
            return None
        text = file.read(size)
    try:
        with safe_open(path, "np"):
            values: dict[str, Any] = json.loads(text)
    except (SafetensorError, OSError, ValueError):  # OSError: an empty file cannot be mapped
        return None
    return values
