"""DeepSpeed's ZeRO checkpoints for another number of ranks.

DeepSpeed refuses another world size. Its answer, the universal checkpoint, reads and writes pickle, and release 0.15
knows ZeRO-3 with one parameter group only, where weight decay makes two. What DeepSpeed stores is simple enough: each
rank's file holds, for each group, the flat float32 weights of its part and the optimizer's tensors for them, which are
of the same size (Adam's two moments).

- Stages 1 and 2: the group's parameters end to end, with zeros at the end up to a multiple of ALIGNMENT x ranks
  elements; each rank has an equal share of that.
- Stage 3: each rank has 1/ranks of each parameter, rounded up, with zeros at the end of the last rank's.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

from debzero.base.errors import UserError
from debzero.run import tensor_file

STATE = "optimizer_state_dict"  # DeepSpeed's name for its own state, and in stage 3 within it for the optimizer's
WEIGHTS, WEIGHTS_3 = "single_partition_of_fp32_groups", "fp32_flat_groups"
BASE = "base_optimizer_state"
ALIGNMENT = 2  # elements a rank: nccl_start_alignment_factor of DeepSpeed's stages 1 and 2

# The flat tensors of a group for the new ranks, from those of the ranks before; `sizes`: its parameters', in elements.
Deal = Callable[[Sequence[Any], Sequence[int], int], list[Any]]


def deal_groups(flats: Sequence[Any], sizes: Sequence[int], ranks: int) -> list[Any]:
    """Of stages 1 and 2."""
    import torch
    import torch.nn.functional as F

    whole = torch.cat(list(flats))[: sum(sizes)]
    return list(F.pad(whole, (0, -whole.numel() % (ALIGNMENT * ranks))).view(ranks, -1).clone().unbind(0))


def deal_parameters(flats: Sequence[Any], sizes: Sequence[int], ranks: int) -> list[Any]:
    """Of stage 3."""
    import torch
    import torch.nn.functional as F

    padded, start = [], 0
    for size in sizes:
        part = -(-size // len(flats))
        whole = torch.cat([flat[start : start + part] for flat in flats])[:size]
        padded.append(F.pad(whole, (0, -size % ranks)).view(ranks, -1))
        start += part
    return list(torch.cat(padded, 1).clone().unbind(0))


def reshard(source: Path, target: Path, ranks: int) -> None:
    """Write into the new folder `target` what `ranks` ranks would have written instead of those that wrote `source`.
    One rank does this. Raises a UserError where that cannot be."""
    optimizers = _ordered(source, "*zero_pp_rank_*_mp_rank_00_optim_states.pt")
    models = _ordered(source, "*mp_rank_00_model_states.pt")
    model = tensor_file.read(models[0])
    files = [tensor_file.read(path) for path in optimizers]
    states = [file[STATE] for file in files]
    zero3 = WEIGHTS_3 in states[0]
    key, deal = (WEIGHTS_3, deal_parameters) if zero3 else (WEIGHTS, deal_groups)
    sizes = [[shape.numel() for shape in shapes.values()] for shapes in model["param_shapes"]]
    _check(states, key, sizes, model["ds_config"])

    weights = [deal([state[key][number] for state in states], group, ranks) for number, group in enumerate(sizes)]
    groups = [state[STATE if zero3 else BASE]["state"] for state in states]
    tensors = _optimizer_tensors(groups, [state[key] for state in states], sizes, ranks, deal)
    target.mkdir()
    model["dp_world_size"] = ranks
    kept = states[0]
    kept.pop("param_slice_mappings", None)  # where each parameter lay; only the universal checkpoint asks
    for rank in range(ranks):
        kept["partition_count"] = ranks if zero3 else [ranks] * len(sizes)
        kept[key] = [group[rank] for group in weights]
        for number, values in groups[0].items():
            values.update({name: dealt[rank] for name, dealt in tensors[number].items()})
        for group in kept.get("ds_zero_partition_groups") or []:  # of later releases
            group.update(partition_count=ranks, partition_rank=rank)
        tensor_file.write(target / _renamed(optimizers[0].name, rank), files[0])
        if zero3 or rank == 0:
            tensor_file.write(target / _renamed(models[0].name, rank), model)


def _ordered(folder: Path, pattern: str) -> list[Path]:
    """The ranks' files, in order of rank."""
    return sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name))


def _renamed(name: str, rank: int) -> str:
    return name.replace("zero_pp_rank_0_", f"zero_pp_rank_{rank}_")


def _check(states: list[Any], key: str, sizes: list[list[int]], config: dict[str, Any]) -> None:
    """Raises a UserError where the files do not hold what this module can reshard."""
    zero = config.get("zero_optimization") or {}
    settings = [name for name in ("round_robin_gradients", "elastic_checkpoint") if zero.get(name)]
    held = [sum(state[key][number].numel() for state in states) for number in range(len(states[0][key]))]
    if settings:
        reason = f"checkpoints with zero_optimization.{settings[0]}"
    elif len(held) != len(sizes):
        reason = "optimizer states that lie in more pieces than the model has parameter groups"
    elif any(there < sum(group) for there, group in zip(held, sizes)):
        reason = "optimizer states that lie in files of NVMe offload"
    else:
        return
    raise UserError(f"{reason} cannot be resharded for another number of ranks",
                    f"start the job with as many ranks as before (`--ranks {len(states)}`)")


def _optimizer_tensors(groups: list[Any], weights: list[Any], sizes: list[list[int]], ranks: int,
                       deal: Deal) -> dict[int, dict[str, list[Any]]]:
    """{group: {name: each new rank's tensor}} of what the optimizer has for each weight. `groups` and `weights`: the
    optimizer's states and the flat weights of each rank before; what else an optimizer keeps is the same on all."""
    import torch

    dealt: dict[int, dict[str, list[Any]]] = {}
    for number, values in groups[0].items():
        names = [name for name, value in values.items()
                 if torch.is_tensor(value) and value.dim() and value.numel() >= weights[0][number].numel()]
        dealt[number] = {name: deal([group[number][name] for group in groups], sizes[number], ranks)
                         for name in names}
    return dealt
