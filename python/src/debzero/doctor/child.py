"""What may crash or hang, and therefore runs in a process of its own: `python -m debzero.doctor.child TOPIC ...`.

Facts are reported as soon as they are known, each as a line [topic, facts] on standard output: after a crash it is
clear how far it came.
"""
from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Callable

from debzero.doctor.process import KILL_SECONDS, signal_name

# Libraries print as they like: to standard error, where nobody takes it for a fact.
_facts = os.fdopen(os.dup(1), "w")
FORK_SECONDS = 60
ELEMENTS, ROUNDS = 2**24, 10  # NCCL's test: 64 MiB in fp32, large enough that latency does not count


def report(topic: str, **facts: Any) -> None:
    print(json.dumps([topic, facts]), file=_facts, flush=True)


def run_in_fork(work: Callable[..., dict[str, Any]], *arguments: str, seconds: float = FORK_SECONDS) -> dict[str, Any]:
    """What `work` returns, or {"error": ...}. A crash or a hang stays in the fork, and torch is not imported again."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)

    def send() -> None:
        try:
            writer.send(work(*arguments))
        except BaseException as error:
            writer.send({"error": f"{type(error).__name__}: {error}"})

    process = context.Process(target=send, daemon=True)
    process.start()
    writer.close()
    try:
        facts: dict[str, Any] = reader.recv() if reader.poll(seconds) else {"error": f"no answer within {seconds:g} s"}
    except EOFError:
        process.join(KILL_SECONDS)
        code = process.exitcode or 0
        facts = {"error": f"killed by {signal_name(-code)}" if code < 0 else f"exit code {code}"}
    process.kill()
    process.join(KILL_SECONDS)
    # Else this process's exit waits for one that cannot be killed.
    multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
    return facts


def software(operators: list[str], with_deepspeed: bool) -> None:
    """torch, the prebuilt operators, the GPUs as torch sees them, and on demand DeepSpeed (its import takes long)."""
    import torch

    report("torch", version=str(torch.__version__), cuda=torch.version.cuda)
    for name in operators:
        report(f"operator {name}", **run_in_fork(_load, name))
    report("cuda", **run_in_fork(_cuda))
    # Not before: once a process has touched CUDA, its forks cannot.
    nccl = torch.cuda.nccl.version() if torch.version.cuda else None
    report("libraries", cudnn=torch.backends.cudnn.version(), nccl=nccl)
    if with_deepspeed:
        import deepspeed

        report("deepspeed", version=deepspeed.__version__)


def _load(operator: str) -> dict[str, Any]:
    """Import the operator's file alone: `import deepspeed` may fail for reasons of its own."""
    package = importlib.util.find_spec("deepspeed")
    top = Path(next(iter(package.submodule_search_locations or [])), "ops") if package else Path()
    name = f"{operator}_op"
    spec = PathFinder.find_spec(name, [str(folder) for folder in [top, *top.rglob("*")] if folder.is_dir()])
    if spec is None or spec.loader is None:
        raise ImportError("its file is missing")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return {}


def _cuda() -> dict[str, Any]:
    import torch

    torch.cuda.init()  # says why it cannot, where is_available() only warns
    devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return {"architectures": torch.cuda.get_arch_list(),
            "devices": [{"name": device.name, "capability": f"{device.major}.{device.minor}",
                         "memory_mb": device.total_memory // 2**20} for device in devices]}


def nccl(rank: int, ranks: int, meeting_point: str) -> None:
    """One rank of an all-reduce over all GPUs of this host. Reports the GB/s that each GPU sent and received."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    os.environ["NCCL_SOCKET_IFNAME"] = "lo"  # no other host has to reach this
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", init_method=f"file://{meeting_point}", rank=rank, world_size=ranks,
                            timeout=timedelta(seconds=60))
    values = torch.full((ELEMENTS,), float(rank + 1), device=device)
    dist.all_reduce(values)
    expected = ranks * (ranks + 1) / 2
    wrong = int((values != expected).sum())
    if wrong:
        raise ArithmeticError(f"rank {rank} got {wrong} of {ELEMENTS} sums wrong")
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(ROUNDS):
        dist.all_reduce(values)
    torch.cuda.synchronize(device)
    seconds = (time.perf_counter() - start) / ROUNDS
    # nccl-tests' "bus bandwidth": of a ring, in which each GPU passes on 2 (n-1)/n of the data.
    report("nccl", gigabytes_per_second=round(2 * (ranks - 1) / ranks * 4 * ELEMENTS / seconds / 1e9, 2))
    dist.destroy_process_group()


def main() -> None:
    os.dup2(2, 1)
    topic, *arguments = sys.argv[1:]
    if topic == "software":
        software([name for name in arguments if name != "--deepspeed"], "--deepspeed" in arguments)
    elif topic == "nccl":
        nccl(int(arguments[0]), int(arguments[1]), arguments[2])


if __name__ == "__main__":
    main()
