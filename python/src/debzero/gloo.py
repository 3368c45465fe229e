"""What DeepSpeed's CPU accelerator needs and torch's gloo may lack.

torch 1.13's gloo has neither `_allgather_base` nor `reduce_scatter`. DeepSpeed asks its TorchBackend for both functions;
it must never be given None, because its all_gather_into_tensor then silently does nothing. Newer torch keeps its own.
"""
from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.distributed as dist


def all_gather_into_tensor(output_tensor: Any, input_tensor: Any, group: Any = None, async_op: bool = False) -> Any:
    """Every rank's input, one after the other, in the output."""
    parts = list(output_tensor.view(-1).chunk(dist.get_world_size(group)))
    return dist.all_gather(parts, input_tensor.view(-1), group, async_op)


def reduce_scatter_tensor(output: Any, input: Any, op: Any = dist.ReduceOp.SUM, group: Any = None,
                          async_op: bool = False) -> Any:
    """This rank's chunk of the sum (or other `op`) of all ranks' inputs."""
    total = input.clone()
    dist.all_reduce(total, op, group)
    output.copy_(total.view(-1).chunk(dist.get_world_size(group))[dist.get_rank(group)].view_as(output))
    return _Done() if async_op else None


class _Done:
    def wait(self) -> None:
        """Nothing to wait for: the reduction above was synchronous."""


def _lacks(function: Any) -> bool:
    """Whether this torch's gloo refuses `function` (it must be tried: the Python function exists either way)."""
    size = dist.get_world_size()
    try:
        if function == "gather":
            dist.all_gather_into_tensor(torch.empty(size), torch.zeros(1))
        else:
            dist.reduce_scatter_tensor(torch.empty(1), torch.zeros(size))
    except (RuntimeError, AttributeError):
        return True
    return False


def complete() -> None:
    """Give DeepSpeed the missing functions, and spare it the compilation of one that only inference uses.

    Call it after torch's process group is up and before DeepSpeed's.
    """
    backend = importlib.import_module("deepspeed.comm.torch")  # `from deepspeed.comm import torch` is torch itself

    if _lacks("gather"):
        backend.TorchBackend.get_all_gather_function = classmethod(lambda cls: all_gather_into_tensor)
    if _lacks("scatter"):
        backend.TorchBackend.get_reduce_scatter_function = classmethod(lambda cls: reduce_scatter_tensor)
    if hasattr(backend, "build_shm_op"):
        setattr(backend, "build_shm_op", lambda: None)  # noqa: B010 - torch versions differ
