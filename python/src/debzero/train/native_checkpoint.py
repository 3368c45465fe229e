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
    starts: list[int]   # where each begins
    master: Any         # float32
    share: int          # elements


@dataclass(frozen=True)
class Read:
    """What a checkpoint holds beside the weights: Adam's moments of each bucket's share, {} before the first step, the
    steps they have seen, and fp16's loss scale."""

    states: dict[Any, dict[str, Any]]
    step: int
    scale: Optional[tuple[float, int]]


class Places:
    """Where a group's parameters lie in DeepSpeed's flat tensor, of which each rank has `part` elements, the last one
    fewer. These are the places of stages 1 and 2 (run/reshard)."""

    weights = reshard.WEIGHTS  # their name in the file

    def __init__(self, parameters: Sequence[Any]) -> None:
        self.start, end = dict[Any, int](), 0
        for parameter in parameters:
            self.start[parameter] = end
            end += self._length(parameter)
        self.total = end
        self.part = self._part()

    def _length(self, parameter: Any) -> int:
        return parameter.numel()

    def _part(self) -> int:
        return -(-self.total // (reshard.ALIGNMENT * dist.get_world_size())) * reshard.ALIGNMENT

    def held(self, rank: int) -> int:
        """Elements in the rank's file."""
        return min(self.part, max(0, self.total - rank * self.part))

    def of(self, parameter: Any, rank: int) -> tuple[range, int]:
        """Which elements of a parameter a rank's part holds, and where they begin in it."""
        start = self.start[parameter]
        first, last = max(0, rank * self.part - start), min(parameter.numel(), (rank + 1) * self.part - start)
        return range(first, last), start + first - rank * self.part


class Stage3(Places):
    """Each rank has an equal share of each parameter, rounded up, and a file of its own for the model, too."""

    weights = reshard.WEIGHTS_3

    def _length(self, parameter: Any) -> int:
        return -(-parameter.numel() // dist.get_world_size())

    def _part(self) -> int:
        return self.total

    def held(self, rank: int) -> int:
        return self.part

    def of(self, parameter: Any, rank: int) -> tuple[range, int]:
        size, share = parameter.numel(), self._length(parameter)
        return range(min(size, rank * share), min(size, (rank + 1) * share)), self.start[parameter]


def overlaps(places: Sequence[Places], bucket: Bucket, held: range, rank: int) -> Iterator[tuple[int, slice, slice]]:
    """What a piece of a bucket and a rank's flat tensors have in common: the tensor's number, where it lies in the
    piece and where in the tensor. `held`: the piece's elements in the bucket."""
    for parameter, position in zip(bucket.parameters, bucket.starts):
        number = next(n for n, place in enumerate(places) if parameter in place.start)
        elements, offset = places[number].of(parameter, rank)
        start, end = max(position + elements.start, held.start), min(position + elements.stop, held.stop)
        if start < end:
            shift = offset - position - elements.start  # from the bucket to the flat tensor
            yield number, slice(start - held.start, end - held.start), slice(start + shift, end + shift)


def save(folder: Path, model: Any, places: Sequence[Places], states: Sequence[tuple[Any, dict[str, Any]]],
         scale: Optional[tuple[float, int]]) -> None:
    """Write this rank's part. `states`: each bucket with what Adam holds for its share. All ranks call this: what a
    rank writes is not what it updates, and is gathered one bucket at a time."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    step = next((int(state["step"]) for _, state in states if state), 0)
    names = ("weights", *MOMENTS) if step else ("weights",)
    flats = [{name: torch.zeros(place.part) for name in names} for place in places]
    for bucket, state in states:
        for name in names:
            whole = _gathered(bucket.master if name == "weights" else state[name])
            for number, source, target in overlaps(places, bucket, range(bucket.share * ranks), rank):
                flats[number][name][target] = whole[source].cpu()
    adam: dict[str, Any] = {"state": {number: {"step": torch.tensor(float(step)), **{
        name: flat[name] for name in MOMENTS}} for number, flat in enumerate(flats)} if step else {}}
    half, kind = next(model.parameters()).dtype, type(places[0])
    prefix = "bf16_" if half == torch.bfloat16 else ""
    tensor_file.write(folder / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", {reshard.STATE: {
        kind.weights: [flat["weights"][:place.held(rank)] for flat, place in zip(flats, places)],
        _base(kind): adam, "partition_count": ranks if kind is Stage3 else [ranks] * len(places),
        "ds_version": stack().deepspeed, SCALE: scale}})
    if kind is Stage3 or placement.leads():
        name_of = {parameter: name for name, parameter in model.named_parameters()}
        module = model.state_dict()
        if kind is Stage3:  # weights are where the optimizer's states are, and DeepSpeed expects empty ones here
            buffers = dict(model.named_buffers())
            module = {name: value if name in buffers else value.new_empty(0) for name, value in module.items()}
        tensor_file.write(folder / _model_file(kind), {
            "module": module, "param_shapes": [{name_of[p]: p.shape for p in place.start} for place in places],
            "global_steps": step, "skipped_steps": 0, "dp_world_size": ranks, "mp_world_size": 1, "ds_config": {},
            "ds_version": stack().deepspeed})


def _model_file(kind: type[Places]) -> str:
    return f"zero_pp_rank_{dist.get_rank()}_mp_rank_00_model_states.pt" if kind is Stage3 else MODEL


def _base(kind: type[Places]) -> str:
    """DeepSpeed's name for Adam's state."""
    return reshard.STATE if kind is Stage3 else reshard.BASE


def _gathered(share: Any) -> Any:
    """All ranks' shares of a bucket, one after the other."""
    parts = [torch.empty_like(share) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, share)
    return torch.cat(parts)


def load(folder: Path, model: Any, places: Sequence[Places], buckets: Sequence[Bucket]) -> Read:
    """Copy the weights into the model and the buckets' shares. As many ranks as there are now have written the
    checkpoint, with either engine."""
    own, kind = dist.get_rank(), type(places[0])
    _load_module(model, tensor_file.read(folder / _model_file(kind))["module"], kind)
    states: dict[Any, dict[str, Any]] = {bucket: {} for bucket in buckets}
    step, scale = 0, None
    for rank in range(dist.get_world_size()):
        path, = folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        state = tensor_file.read(path)[reshard.STATE]
        adam = state[_base(kind)]["state"]
        scale = scale or _scale(state)
        flats = [{"weights": flat} for flat in _joined(state[kind.weights], places)]
        if adam:
            step = int(adam[0]["step"])
            for name in MOMENTS:
                for flat, moment in zip(flats, _joined([values[name] for values in adam.values()], places)):
                    flat[name] = moment
        for bucket in buckets:
            held = range(own * bucket.share, (own + 1) * bucket.share)
            for number, target, source in overlaps(places, bucket, held, rank):
                for name, flat in flats[number].items():
                    share = bucket.master if name == "weights" else states[bucket].setdefault(
                        name, torch.zeros_like(bucket.master))
                    share[target] = flat[source].to(share.device)
    return Read({bucket: state for bucket, state in states.items() if state}, step, scale)


def _load_module(model: Any, module: dict[str, Any], kind: type[Places]) -> None:
    if kind is not Stage3:
        model.load_state_dict(module)
        return
    for name, buffer in model.named_buffers():
        if name in module:
            buffer.copy_(module[name])


def _joined(flats: Sequence[Any], places: Sequence[Places]) -> list[Any]:
    """A flat tensor for each group: DeepSpeed's stage 3 cuts those of very large models."""
    if len(flats) == len(places):
        return list(flats)
    rest, joined = list(flats), []
    for place in places:
        pieces = [rest.pop(0)]
        while sum(map(len, pieces)) < place.part:
            pieces.append(rest.pop(0))
        joined.append(torch.cat(pieces))
    return joined


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
    scaler = optimizer.loss_scaler
    if reshard.BASE in state:
        adam, groups = state[reshard.BASE], optimizer.optimizer.state_dict()["param_groups"]
    else:
        optimizer._set_fp32_optimizer_param_groups()  # at other times they are empty
        adam, groups = state[reshard.STATE], optimizer.optimizer.state_dict()["param_groups"]
        optimizer._clear_fp32_optimizer_param_groups()
        state.update(loss_scaler=scaler, dynamic_loss_scale=optimizer.dynamic_loss_scale, overflow=False)
    adam.setdefault("param_groups", groups)
    if state.get(SCALE) and hasattr(scaler, "last_overflow_iter"):
        scale, good_steps = state[SCALE]
        scaler.cur_scale, scaler.last_overflow_iter = scale, scaler.cur_iter - good_steps - 1
