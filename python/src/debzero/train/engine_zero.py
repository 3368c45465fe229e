"""DeepSpeed ZeRO."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from debzero.data.stream import Micro
from debzero.model import compiled
from debzero.resolve.resolve import ResolvedJob
from debzero.run import reshard, tensor_file
from debzero.train import native_checkpoint, placement
from debzero.train.engine import Engine, on_host, parameter_groups, to_device


def _quieten_stage3() -> None:
    """Stage 3 guesses the next layer from the last pass and prints, on each pass, that an encoder or a decoder alone is
    another order. Later releases ask before they do (log_trace_cache_warnings)."""
    from deepspeed.runtime.zero import partitioned_param_coordinator

    partitioned_param_coordinator.print_rank_0 = lambda *_, **__: None


def _gather_whole_layers(model: Any) -> None:
    """Let stage 3 gather each repeated layer at once, and reduce its gradients together, in place of a hook for every
    module in it. The gradients are reduced when that of the layer's first input is complete, so a layer must get its
    input by position, as it does in BERT, GPT-2 and T5."""
    from deepspeed.utils import set_z3_leaf_modules

    if layers := compiled.blocks(model):
        set_z3_leaf_modules(model, list({type(layer) for layer in layers}))


def _checkpoint_engine(optimizer: Any) -> Any:
    """What DeepSpeed, whose optimizer this is, writes its files with, and reads them, instead of torch.save and
    torch.load. The files keep the names that DeepSpeed looks for."""
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

    class TensorFiles(CheckpointEngine):
        def create(self, info: Any) -> None:
            """Of release 0.15 the tag."""

        def save(self, state_dict: Any, path: str) -> None:
            tensor_file.write(Path(path), state_dict)

        def load(self, path: str, map_location: object = None) -> Any:
            tree = tensor_file.read(Path(path))
            if native_checkpoint.SCALE in tree.get(reshard.STATE, {}):
                native_checkpoint.complete(tree[reshard.STATE], optimizer)
            return tree

        def commit(self, info: Any) -> bool:
            return True

    return TensorFiles()


class ZeroEngine(Engine):
    """DeepSpeed; its configuration says what it shards."""

    def __init__(self, model: Any, resolved: ResolvedJob, device: Any, task: Any, config: dict[str, Any]) -> None:
        import deepspeed

        # Universal checkpoints, which a user's JSON may ask for, are pickle. And each host keeps what its ranks need.
        config = {**config, "checkpoint": {**(config.get("checkpoint") or {}), "load_universal": False,
                                           "use_node_local_storage": len(placement.hosts()) > 1}}
        self.device, self.task, self.updating = device, task, False
        self.stage3 = config["zero_optimization"]["stage"] == 3
        if self.stage3:
            _quieten_stage3()
            if resolved.favours_speed and "leaf_module" not in config["zero_optimization"]:
                _gather_whole_layers(model)
        if not self.stage3 and resolved.job.train.compile == "auto" and compiled.can_compile(device):
            # stage 3 gathers a layer's weights in hooks, which would break its code into pieces
            compiled.compile_layers(model)
        self.engine, _, _, self.own_schedule = deepspeed.initialize(
            model=model, model_parameters=parameter_groups(model, resolved.job.train.weight_decay), config=config)
        self.model = self.engine.module
        self.engine.checkpoint_engine = _checkpoint_engine(self.engine.optimizer)
        self.engine._copy_recovery_script = lambda folder: None  # it reads pickle, which there is none of

    def __call__(self, **inputs: Any) -> Any:
        return self.engine(**inputs)

    def generate(self, **inputs: Any) -> Any:
        """Stage 3 gathers a layer's weights in each forward pass: a rank whose texts have ended passes on with the
        others."""
        return self.model.generate(**inputs, synced_gpus=self.stage3 and dist.get_world_size() > 1)

    def rate_of(self, rate: float) -> float:
        """The user's JSON may have a scheduler."""
        return rate if self.own_schedule is None else float(self.engine.optimizer.param_groups[0]["lr"])

    def step(self, micros: Sequence[Micro], rate: float) -> torch.Tensor:
        self.updating = False
        self.engine.train()
        if self.own_schedule is None:
            for group in self.engine.optimizer.param_groups:
                group["lr"] = rate
        total = torch.zeros((), device=self.device)
        for number, micro in enumerate(micros, 1):
            losses = self.task.losses(self.engine, to_device(micro.batch, self.device))
            loss = (losses * micro.weights.to(self.device)).sum()
            self.engine.backward(loss)  # divides by the accumulation steps
            self.updating = number == len(micros)
            self.engine.step()
            total += loss.detach() / len(micros)
        return total

    @property
    def loss_scale(self) -> float:
        optimizer = self.engine.optimizer  # which of the two it has depends on the stage
        return float(getattr(optimizer, "cur_scale", getattr(optimizer, "loss_scale", 1.0)))

    @property
    def applied_steps(self) -> int:
        return int(self.engine.global_steps - self.engine.skipped_steps)

    def save(self, root: Path, tag: str) -> None:
        self.engine.save_checkpoint(str(root), tag=tag, save_latest=False)

    def load(self, root: Path, tag: str) -> None:
        self.engine.load_checkpoint(str(root), tag=tag)
        # The optimizer comes with the rate that the schedule had for a run of the length that it then had.
        if (done := getattr(self.own_schedule, "last_batch_iteration", None)) is not None:
            self.own_schedule.step(done)

    def weights(self) -> dict[str, Any]:
        """Stage 3 gathers one parameter at a time: all of them may not fit on the device."""
        import deepspeed

        first = placement.leads()
        if not self.stage3:
            return on_host(self.model.state_dict()) if first else {}
        whole: dict[str, Any] = {}
        # tied weights appear once; from_pretrained ties them again
        for name, parameter in self.model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                if first:
                    whole[name] = parameter.detach().cpu().clone()
        persistent = set(self.model.state_dict())
        whole.update({name: b.cpu() for name, b in self.model.named_buffers() if first and name in persistent})
        return whole
