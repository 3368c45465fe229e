"""A ZeRO-3 checkpoint for another number of ranks.

DeepSpeed's converter to universal checkpoints knows ZeRO-3 with one parameter group only (release 0.15 reads and writes
the first of each), and weight decay makes two. What it writes itself is simple enough: each rank's file holds, for each
group, the flat float32 weights and Adam's two moments of that rank's part of each parameter in order, a part being
1/ranks of the parameter, rounded up, with zeros at the end of the last one. """
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from debzero.base.errors import UserError

STATE = "optimizer_state_dict"  # DeepSpeed's name for its own state, and within it for the optimizer's


def _file(folder: Path, rank: int, what: str) -> Path:
    return folder / f"zero_pp_rank_{rank}_mp_rank_00_{what}_states.pt"


def _parts(flats: list[Any], shapes: dict[str, Any]) -> Iterator[Any]:
    """Each parameter whole and flat, from the ranks' flat tensors of its group."""
    import torch

    start = 0
    for shape in shapes.values():
        size = -(-shape.numel() // len(flats))
        yield torch.cat([flat[start : start + size] for flat in flats])[: shape.numel()]
        start += size


def _deal(whole: list[Any], ranks: int) -> list[Any]:
    """The other way round: the flat tensor of each rank."""
    import torch
    import torch.nn.functional as F

    padded = [F.pad(one, (0, -one.numel() % ranks)).view(ranks, -1) for one in whole]
    return list(torch.cat(padded, 1).clone().unbind(0))


def reshard(source: Path, target: Path, before: int, ranks: int) -> None:
    """Write into the new folder `target` what `ranks` ranks would have written where `before` ranks wrote `source`."""
    import torch

    def load(path: Path) -> Any:  # our own file, whose checksum was just compared
        return torch.load(path, map_location="cpu", weights_only=False)

    model, states = load(_file(source, 0, "model")), [load(_file(source, rank, "optim")) for rank in range(before)]
    groups = model["param_shapes"]
    if len(states[0][STATE]["fp32_flat_groups"]) != len(groups):
        raise UserError("this model's optimizer states lie in more pieces than it has parameter groups, which cannot "
                        "be dealt anew",
                        f"start the job with {before} ranks, as before (`--ranks`)")

    def dealt(flats: list[Any], number: int) -> list[Any]:
        return _deal(list(_parts(flats, groups[number])), ranks)

    target.mkdir()
    weights = [dealt([state[STATE]["fp32_flat_groups"][number] for state in states], number)
               for number in range(len(groups))]
    moments = {key: [dealt([state[STATE][STATE]["state"][number][key] for state in states], number)
                     for number in range(len(groups))]
               for key in ("exp_avg", "exp_avg_sq")}
    model["dp_world_size"] = ranks
    kept = states[0][STATE]
    for rank in range(ranks):
        kept["partition_count"] = ranks
        kept["fp32_flat_groups"] = [group[rank].clone() for group in weights]
        for number, values in kept[STATE]["state"].items():
            values.update({key: moments[key][number][rank].clone() for key in moments})
        for group in kept.get("ds_zero_partition_groups") or []:  # of later releases
            group.update(partition_count=ranks, partition_rank=rank)
        torch.save(model, _file(target, rank, "model"))
        torch.save(states[0], _file(target, rank, "optim"))
