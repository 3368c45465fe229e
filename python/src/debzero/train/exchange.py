"""What the ranks tell each other beside tensors: values that JSON can hold, and errors, as bytes in tensors.

torch's own exchange of objects (broadcast_object_list, all_gather_object) unpickles what arrives: whoever gets among
the ranks could run code in each of them. JSON holds nothing that runs, and no message is longer than LIMIT.
"""
from __future__ import annotations

import json
import traceback
from dataclasses import asdict, replace
from typing import Any, Callable, Optional

import numpy as np

from debzero.base import errors
from debzero.base.errors import InputError, Problem, UserError
from debzero.base.failures import as_user_error
from debzero.train import placement

LIMIT = 2**26  # bytes of one message
ERRORS = {kind.__name__: kind for kind in (UserError, errors.HiddenError, errors.PassingError, errors.OutOfMemory)}
PROBLEMS = {kind.__name__: kind for kind in (Problem, errors.PassingProblem)}


def device() -> Any:
    """Where the tensors of a collective must be: NCCL takes none in the host's memory."""
    import torch
    import torch.distributed as dist

    nccl = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def barrier() -> None:
    """Wait for all ranks."""
    import torch
    import torch.distributed as dist

    if dist.get_backend() == "nccl":  # which guesses the device where it is not told, and says so
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


def _encoded(value: Any) -> Any:
    """uint8[bytes] of a value."""
    import torch

    text = json.dumps(value).encode()
    return torch.from_numpy(np.frombuffer(text, np.uint8).copy()).to(device())


def _checked(size: int) -> int:
    if not 0 < size <= LIMIT:
        raise UserError(f"a rank announced a message of {size} bytes", "please report this: it is a defect")
    return size


def _decoded(message: Any) -> Any:
    return json.loads(message.cpu().numpy().tobytes())


def broadcast(value: Any) -> Any:
    """Rank 0's value, on all ranks. What it is on the others does not matter."""
    import torch
    import torch.distributed as dist

    first = dist.get_rank() == 0
    message = _encoded(value if first else None)
    size = torch.tensor([len(message)], device=device())
    dist.broadcast(size, 0)
    count = _checked(int(size.item()))
    if not first:
        message = torch.empty(count, dtype=torch.uint8, device=device())
    dist.broadcast(message, 0)
    return _decoded(message)


def gather(value: Any) -> list[Any]:
    """Every rank's value, in the order of the ranks, on all of them."""
    import torch
    import torch.distributed as dist

    ranks, message = dist.get_world_size(), _encoded(value)
    sizes = torch.zeros(ranks, dtype=torch.int64, device=device())
    sizes[dist.get_rank()] = len(message)
    dist.all_reduce(sizes)
    counts = [_checked(size) for size in sizes.tolist()]
    padded = torch.zeros(max(counts), dtype=torch.uint8, device=device())
    padded[: len(message)] = message
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return [_decoded(part[:count]) for part, count in zip(parts, counts)]


def gather_rows(indices: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """float64[count, k], on all ranks: row i is the one that some rank has for the index i. Each has its own indices
    (int64[n]) and rows (float64[n, k]); together they have each index once."""
    import torch
    import torch.distributed as dist

    table = torch.zeros(count, 1 + rows.shape[1], dtype=torch.float64)
    table[torch.from_numpy(indices), 0] = 1  # how often the index was there
    table[torch.from_numpy(indices), 1:] = torch.from_numpy(rows)
    table = table.to(device())
    dist.all_reduce(table)
    assert bool((table[:, 0] == 1).all()), "each index belongs to exactly one rank"
    return np.asarray(table[:, 1:].cpu().numpy())


class Outcome:
    """What rank 0's work came to: its result, which JSON can hold, or its error."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: Optional[Exception] = None
        try:
            self.result = work()
        except (InputError, UserError) as error:
            self.error = error
        except Exception as error:
            known = as_user_error(error, "/")
            if known is None:
                traceback.print_exc()
            self.error = known or UserError(f"{type(error).__name__}: {error}", "please report this: it is a defect")

    def as_json(self) -> dict[str, Any]:
        if isinstance(self.error, InputError):
            return {"problems": [[type(problem).__name__, asdict(problem)] for problem in self.error.problems]}
        if isinstance(self.error, UserError):
            return {"error": type(self.error).__name__, "reason": self.error.reason, "fix": self.error.fix}
        return {"result": self.result}


def settle(values: dict[str, Any], host: str = "") -> Any:
    """The result in an outcome's JSON; raises its error. `host`: whose it is, where there are several."""
    if "problems" in values:
        problems = [PROBLEMS[kind](**problem) for kind, problem in values["problems"]]
        raise InputError([replace(problem, file=f"{host}: {problem.file}" if host else problem.file)
                          for problem in problems])
    if "error" in values:
        raise ERRORS[values["error"]](f"{host}: {values['reason']}" if host else values["reason"], values["fix"])
    return values["result"]


def everywhere(work: Callable[[], Any]) -> list[Any]:
    """The first rank of each host does `work`, which returns what JSON can hold; all ranks get what each host's
    returned, or raise the first error."""
    outcome, names = Outcome(work).as_json() if placement.leads() else None, placement.hosts()
    if len(names) == 1:
        return [settle(broadcast(outcome))]
    return [settle(found, name) for name, found in zip(names, gather(outcome)[::placement.local_ranks()])]


def agree(work: Callable[[], Any]) -> Any:
    """As everywhere; each rank gets what its own host's returned."""
    return everywhere(work)[placement.host()]
