"""The native engine's checkpoints: the files that DeepSpeed would have written at the same stage (see run/reshard).

So a run may change the engine, and checkpoints are resharded in one way. What differs: the optimizer's settings are not
stored, as the job has them; and fp16's loss scale is stored as numbers, not as an object of DeepSpeed's.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Protocol

import torch
import torch.distributed as dist

from debzero.base.stack import stack
from debzero.run import reshard, tensor_file
from debzero.train import placement

MODEL = "mp_rank_00_model_states.pt"
SCALE = "loss_scale"  # (loss scale, steps since the last overflow)
MOMENTS = ("exp_avg", "exp_avg_sq")


class Bucket(Protocol):
    """Parameters that lie one after the other, of which each rank holds an equal share in `master`."""

    parameters: list[Any]
    master: Any     # float32
    share: int      # elements


@dataclass(frozen=True)
class Read:
    """What a checkpoint holds beside the weights: Adam's moments of each bucket's share, {} before the first step, the
    steps they have seen, and fp16's loss scale."""

    states: dict[Any, dict[str, Any]]
    step: int
    scale: Optional[tuple[float, int]]


class Places:
    """Where a group's parameters lie in DeepSpeed's flat tensor: `start` by parameter, `part` elements a rank."""

    def __init__(self, parameters: Sequence[Any]) -> None:
        self.start, end = dict[Any, int](), 0
        for parameter in parameters:
            self.start[parameter] = end
            end += parameter.numel()
        self.total = end
        self.part = -(-end // (reshard.ALIGNMENT * dist.get_world_size())) * reshard.ALIGNMENT

    def overlaps(self, bucket: Bucket, held: range, rank: int) -> Iterator[tuple[slice, slice]]:
        """What a piece of a bucket and a rank's part of the flat tensor have in common: where it lies in the piece and
        where in the part. `held`: the piece's elements in the bucket."""
        first, position = rank * self.part, 0
        for parameter in bucket.parameters:
            shift = self.start[parameter] - position  # from the bucket to the flat tensor
            start = max(position, held.start, first - shift)
            end = min(position + parameter.numel(), held.stop, first + self.part - shift)
            if start < end:
                yield slice(start - held.start, end - held.start), slice(start + shift - first, end + shift - first)
            position += parameter.numel()


def save(folder: Path, model: Any, groups: Sequence[dict[str, Any]], states: Sequence[tuple[Any, dict[str, Any]]],
         scale: Optional[tuple[float, int]]) -> None:
    """Write this rank's part. `states`: each bucket with what Adam holds for its share. All ranks call this: what a
    rank writes is not what it updates, and is gathered one bucket at a time."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    places = [Places(group["params"]) for group in groups]
    step = next((int(state["step"]) for _, state in states if state), 0)
    names = ("weights", *MOMENTS) if step else ("weights",)
    flats = [{name: torch.zeros(place.part) for name in names} for place in places]
    for bucket, state in states:
        number = next(n for n, place in enumerate(places) if bucket.parameters[0] in place.start)
        held = range(bucket.share * ranks)
        for name in names:
            whole = _gathered(bucket.master if name == "weights" else state[name])
            for source, target in places[number].overlaps(bucket, held, rank):
                flats[number][name][target] = whole[source].cpu()
    optimizer: dict[str, Any] = {"state": {number: {"step": torch.tensor(float(step)), **{
        name: flat[name] for name in MOMENTS}} for number, flat in enumerate(flats)} if step else {}}
    # DeepSpeed leaves out the zeros at the end of the last rank's weights.
    weights = [flat["weights"][:max(0, place.total - rank * place.part)] for flat, place in zip(flats, places)]
    half = next(model.parameters()).dtype
    prefix = "bf16_" if half == torch.bfloat16 else ""
    tensor_file.write(folder / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", {reshard.STATE: {
        reshard.WEIGHTS: weights, reshard.BASE: optimizer, "partition_count": [ranks] * len(groups),
        "ds_version": stack().deepspeed, SCALE: scale}})
    if placement.leads():
        name_of = {parameter: name for name, parameter in model.named_parameters()}
        shapes = [{name_of[p]: p.shape for p in group["params"]} for group in groups]
        tensor_file.write(folder / MODEL, {
            "module": model.state_dict(), "param_shapes": shapes, "global_steps": step, "skipped_steps": 0,
            "dp_world_size": ranks, "mp_world_size": 1, "ds_config": {}, "ds_version": stack().deepspeed})


def _gathered(share: Any) -> Any:
    """All ranks' shares of a bucket, one after the other."""
    parts = [torch.empty_like(share) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, share)
    return torch.cat(parts)


def load(folder: Path, model: Any, groups: Sequence[dict[str, Any]], buckets: Sequence[Bucket]) -> Read:
    """Copy the weights into the model and the buckets' shares. As many ranks as there are now have written the
    checkpoint, with either engine."""
    own, places = dist.get_rank(), [Places(group["params"]) for group in groups]
    module = tensor_file.read(folder / MODEL)["module"]
    model.load_state_dict(module)
    states: dict[Any, dict[str, Any]] = {bucket: {} for bucket in buckets}
    step, scale = 0, None
    for rank in range(dist.get_world_size()):
        path, = folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        state = tensor_file.read(path)[reshard.STATE]
        adam = state[reshard.BASE]["state"]
        scale = scale or _scale(state)
        for bucket in buckets:
            number = next(n for n, place in enumerate(places) if bucket.parameters[0] in place.start)
            held = range(own * bucket.share, (own + 1) * bucket.share)
            flats = {"weights": state[reshard.WEIGHTS][number]}
            if adam:
                step = int(adam[number]["step"])
                flats.update({name: adam[number][name] for name in MOMENTS})
            for name, flat in flats.items():
                share = bucket.master if name == "weights" else states[bucket].setdefault(
                    name, torch.zeros_like(bucket.master))
                for target, source in places[number].overlaps(bucket, held, rank):
                    share[target] = flat[source].to(share.device)
    return Read({bucket: state for bucket, state in states.items() if state}, step, scale)


def _scale(state: dict[str, Any]) -> Optional[tuple[float, int]]:
    """fp16's loss scale, from either engine's file."""
    theirs = state.get("loss_scaler")
    if theirs is None:
        return state[SCALE]
    iterations, last = getattr(theirs, "cur_iter", 0), getattr(theirs, "last_overflow_iter", -1)
    return float(theirs.cur_scale), iterations - last - 1


def complete(state: dict[str, Any], optimizer: Any) -> None:
    """Add to what the native engine wrote, read as DeepSpeed's state for `optimizer`, DeepSpeed's own, what DeepSpeed
    expects besides."""
    state[reshard.BASE].setdefault("param_groups", optimizer.optimizer.state_dict()["param_groups"])
    scaler = optimizer.loss_scaler
    if state.get(SCALE) and hasattr(scaler, "last_overflow_iter"):
        scale, good_steps = state[SCALE]
        scaler.cur_scale, scaler.last_overflow_iter = scale, scaler.cur_iter - good_steps - 1
