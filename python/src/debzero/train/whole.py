"""The whole of a model that is divided over ranks: put together on rank 0 to be saved, and taken apart again."""
from __future__ import annotations

from typing import Any, Optional

import torch
import torch.distributed as dist

from debzero.model.parts import Cut
from debzero.resolve.layout import Layout, Place
from debzero.train import exchange
from debzero.train.engine import parameter_groups
from debzero.train.groups import Ranks


class Whole:
    """What the model was before it was divided into stages. `cuts`: how tensor-parallel ranks divide a parameter, by
    its name; `parts`: these ranks. `model` has its parts already, but still all layers."""

    def __init__(self, model: Any, cuts: dict[str, Cut], parts: Ranks, layout: Layout, decay: float) -> None:
        self.cuts, self.parts, self.layout = cuts, parts, layout
        self.place = layout.place(dist.get_rank())
        self.names: dict[Any, str] = {p: name for name, p in model.named_parameters()}
        self.shapes = {name: cuts[name].shape if name in cuts else tuple(p.shape) for p, name in self.names.items()}
        # As in plain data parallelism's checkpoints: tied parameters have several names, and each has a number.
        self.entries: dict[str, str] = {}
        self.buffers: dict[str, Any] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor in self.names:
                self.entries[name] = self.names[tensor]
            else:
                self.buffers[name] = tensor.detach().cpu()
        self.groups = [{"weight_decay": group["weight_decay"], "names": [self.names[p] for p in group["params"]]}
                       for group in parameter_groups(model, decay)]
        self.stages: dict[str, tuple[int, ...]] = {}

    def divided(self, model: Any) -> None:
        """Note which stages have each parameter, now that `model` is one. All ranks call this."""
        own = [self.names[p] for p in model.parameters()]
        held = [(self.layout.place(rank).stage, set(names)) for rank, names in enumerate(exchange.gather(own))]
        self.stages = {name: tuple(sorted({stage for stage, names in held if name in names})) for name in self.shapes}

    def gathered(self, name: str, tensor: Optional[Any], like: Any) -> Any:
        """On rank 0 the whole of a parameter, or of what has its shape, in the host's memory. `tensor`: this rank's
        part, on the ranks of the first copy that have one; `like`: a tensor on the device. All of that copy call
        this."""
        home, whole = self.stages[name][0], None
        if self.place.stage == home:
            assert tensor is not None, "the stage has the parameter"
            whole = self._joined(name, tensor.detach().contiguous())
        if home:
            source = self.layout.rank(Place(0, 0, home))
            if dist.get_rank() == source:
                dist.send(whole, 0)
            elif dist.get_rank() == 0:
                whole = torch.empty(self.shapes[name], dtype=like.dtype, device=like.device)
                dist.recv(whole, source)
        return whole.cpu() if dist.get_rank() == 0 and whole is not None else None

    def _joined(self, name: str, tensor: Any) -> Any:
        """The whole of which tensor-parallel ranks have parts, on the first of them."""
        cut, count = self.cuts.get(name), len(self.parts.members)
        if cut is None:
            return tensor
        pieces = []
        for number, rank in enumerate(self.parts.members):
            piece = tensor if number == self.parts.own else tensor.new_empty(cut.shape_of_part(number, count))
            dist.broadcast(piece, rank, self.parts.group)
            pieces.append(piece if not self.parts.own else None)
        return cut.whole(pieces) if not self.parts.own else None

    def own(self, name: str, whole: Any) -> Any:
        """This rank's part of a whole tensor."""
        cut = self.cuts.get(name)
        return whole if cut is None else cut.part(whole, self.parts.own, len(self.parts.members))
