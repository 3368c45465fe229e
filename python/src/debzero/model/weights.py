"""What the weights in a folder are, by their files' headers, against the model that its configuration describes."""
from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from debzero.base.files import read_json
from debzero.base.text import count_text
from debzero.model.folder import INDEX, WEIGHTS, Flaw, header, weight_files

FLOATS = {"F64", "F32", "F16", "BF16"}  # safetensors' names; other types are of quantised weights
AGAIN = "give a folder whose config.json and weights are of the same model; copy both again if they should be"
# Parts that models may have or not, and that fine-tuning makes anew.
OPTIONAL = re.compile(r"pool|^perceiver\.decoder\.")


Shapes = tuple[tuple[int, ...], tuple[int, ...]]  # in the files, and in the model


class Tensor(NamedTuple):
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Fit:
    """How weights fit a model. `lost`: the base model's parameters that no file has; `other`: those that have another
    shape there, with both; `heads`: as `other`, of the task's head, by their names in the files; `strange`: by name,
    those of a type that cannot be trained; `extra`: tensors that the model has no use for."""

    parameters: int
    lost: list[str]
    other: dict[str, Shapes]
    heads: dict[str, Shapes]
    strange: dict[str, str]
    extra: list[str]
    headless: bool  # whether the files have nothing of the head that the task needs
    mixed: bool     # whether they have a head, but name the rest as files without one do


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor in the folder's files, of which flaws() has found nothing wrong; with an index, those it names."""
    files = weight_files(folder)
    found = {name: Tensor(entry["dtype"], tuple(entry["shape"])) for file in files
             for name, entry in (header(folder / file) or {}).items() if name != "__metadata__"}
    index = None if files == [WEIGHTS] else read_json(folder / INDEX)["weight_map"]
    return found if index is None else {name: tensor for name, tensor in found.items() if name in index}


def _usual(name: str) -> str:
    """As transformers names it today: the first checkpoints came from TensorFlow's."""
    return name.replace("gamma", "weight").replace("beta", "bias")


def _converts(kind: str) -> bool:
    """Whether transformers renames or merges the tensors in the files of models of this type, as 5 does for some."""
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    except ImportError:
        return False
    return bool(get_checkpoint_conversion_mapping(kind))


def fit(model: Any, files: dict[str, Tensor]) -> Fit:
    """Compare, as transformers' from_pretrained does, a model on the meta device with what is in the files."""
    import torch

    own = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items()
           if isinstance(tensor, torch.nn.Parameter)}
    found = {**{_usual(name): name for name in files}, **{name: name for name in files}}
    prefix = f"{model.base_model_prefix}."
    if _converts(model.config.model_type):
        return Fit(len(own), [], {}, {}, {}, [], headless=False, mixed=False)
    has_base = model.base_model is not model
    # Files of the bare model have its names, files of a model with a head begin them with the base model's.
    bare = has_base and not any(name.startswith(prefix[:-1]) for name in found)

    def in_files(name: str) -> str:
        name = name[len(prefix):] if bare and name.startswith(prefix) else name
        # T5 and others without a base model may have been saved within a larger one.
        return found.get(name) or (found.get(prefix + name, "") if not has_base else "")

    tied: dict[int, list[str]] = defaultdict(list)
    for name, tensor in own.items():
        tied[id(tensor)].append(name)
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    lost, head_names = [], []
    strange, other, heads = {}, dict[str, Shapes](), dict[str, Shapes]()
    for names in tied.values():
        is_head = has_base and not any(name.startswith(prefix) for name in names)
        present = [name for name in names if in_files(name)]
        if not present and not is_head and not any(p.search(name) for p in (OPTIONAL, *ignored) for name in names):
            lost.append(names[0])
        head_names += [bool(present)] if is_head else []
        for name in present[:1]:
            there, shape = files[in_files(name)], tuple(own[name].shape)
            if there.type not in FLOATS:
                strange[in_files(name)] = there.type
            elif there.shape != shape:
                (heads if is_head else other)[in_files(name)] = there.shape, shape
    used = {in_files(name) for name in own}
    return Fit(len(own), lost, other, heads, strange, [name for name in files if name not in used],
               bool(head_names) and not any(head_names), bare and any(head_names))


def misfits(fit: Fit, kind: str, new_head: bool) -> Iterator[Flaw]:
    """Why weights that fit so cannot be those of a model of this type with its configuration. `new_head`: whether one
    may take the head's place."""
    other = fit.other if new_head else {**fit.other, **fit.heads}
    if lora := [name for name in fit.extra if "lora_" in name]:
        yield Flaw(f"its weights hold an adapter that is not merged ({lora[0]})",
                   "merge it with peft's merge_and_unload(), and give the folder that save_pretrained then writes")
    elif fit.strange:
        name, found = next(iter(fit.strange.items()))
        yield Flaw(f"its weights are quantised ({name} is {found}), and such weights cannot be trained",
                   "use the model that they were made from, in bf16, fp16 or fp32")
    elif fit.mixed:
        yield Flaw(f"its weights are named as those of a {kind} model without a head, but have one, which transformers "
                   "refuses", "save the model again, with save_pretrained of its own class")
    elif fit.lost:
        have = f"; what they have is {_some(fit.extra)}" if fit.extra else ""
        yield Flaw(f"its weights lack {len(fit.lost)} of the {count_text(fit.parameters, 'parameter')} of the {kind} "
                   f"model that its config.json describes ({_some(fit.lost)}){have}", AGAIN)
    if other:
        name, (there, here) = next(iter(other.items()))
        more = f", and {count_text(len(other) - 1, 'more tensor')}" if len(other) > 1 else ""
        yield Flaw(f"its weights have {name} as {_by(there)}, where its config.json makes it {_by(here)}{more}", AGAIN)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
