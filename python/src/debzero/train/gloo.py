"""What DeepSpeed's CPU accelerator needs and torch's gloo lacks.

torch 1.13's gloo has neither `_allgather_base` nor `reduce_scatter`. And on every torch it runs collectives on two
threads: DeepSpeed's ZeRO-3 starts several and waits for the last alone, which orders them on NCCL's stream but not
here. So both functions are replaced by ones that are done when they return; on a CPU there is nothing to overlap with.
"""
from __future__ import annotations

import importlib
from typing import Any

import torch.distributed as dist


class _Done:
    def wait(self) -> None:
        """Nothing to wait for."""


def all_gather_into_tensor(output_tensor: Any, input_tensor: Any, group: Any = None, async_op: bool = False) -> Any:
    """Every rank's input, one after the other, in the output."""
    parts = list(output_tensor.view(-1).chunk(dist.get_world_size(group)))
    dist.all_gather(parts, input_tensor.view(-1), group)
    return _Done() if async_op else None


def reduce_scatter_tensor(output: Any, input: Any, op: Any = dist.ReduceOp.SUM, group: Any = None,
                          async_op: bool = False) -> Any:
    """This rank's chunk of the sum (or other `op`) of all ranks' inputs."""
    total = input.clone()
    dist.all_reduce(total, op, group)
    output.copy_(total.view(-1).chunk(dist.get_world_size(group))[dist.get_rank(group)].view_as(output))
    return _Done() if async_op else None


def complete() -> None:
    """Give DeepSpeed the two functions, and spare it the compilation of an operator that only inference uses.

    Call it after torch's process group is up and before DeepSpeed's. DeepSpeed must never be given None for a function:
    its all_gather_into_tensor then silently does nothing.
    """
    backend = importlib.import_module("deepspeed.comm.torch")  # `from deepspeed.comm import torch` is torch itself
    backend.TorchBackend.get_all_gather_function = classmethod(lambda cls: all_gather_into_tensor)
    backend.TorchBackend.get_reduce_scatter_function = classmethod(lambda cls: reduce_scatter_tensor)
    if hasattr(backend, "build_shm_op"):
        setattr(backend, "build_shm_op", lambda: None)  # noqa: B010 - torch versions differ
