"""The hardware that a plan is for: given on the command line, this host's, or the article's."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from debzero.base.errors import Problem
from debzero.base.text import parse_bytes
from debzero.resolve.host import this_host

# Where neither the command line nor this host says otherwise: two A100, as in the article that this kit began with.
ARTICLE = {"gpus": 2, "gpu_memory": 40 * 2**30, "ram": 256 * 2**30, "nvme": 2 * 2**40}


@dataclass(frozen=True)
class Hardware:
    """What there is, in bytes; `words` says where each number comes from."""

    gpus: int
    gpu_memory: int
    ram: int
    nvme: int
    bf16: bool
    words: str


def find_hardware(gpus: Optional[int], sizes: dict[str, Optional[str]]) -> tuple[Hardware, list[Problem]]:
    """What the command line says, else this host's where it has GPUs, else the article's box."""
    import torch

    given: dict[str, int] = {}
    problems = []
    for name, text in sizes.items():
        if text is None:
            continue
        try:
            given[name] = parse_bytes(text)
            if name == "gpu_memory" and not given[name]:
                raise ValueError("must be more than nothing")
        except ValueError as error:
            option = f"--{name.replace('_', '-')}"
            problems.append(Problem("the command line", option, str(error), f"for example {option} 40G"))
    host = this_host()
    values, words = dict(ARTICLE), "the article's, as this host has no GPU"
    if host.gpus:
        import psutil

        memory = min(torch.cuda.get_device_properties(number).total_memory for number in range(host.gpus))
        values = {"gpus": host.gpus, "gpu_memory": memory, "ram": psutil.virtual_memory().total, "nvme": 0}
        words = "this host's"
    said = {**given, **({"gpus": gpus} if gpus else {})}
    if said:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in values if name in said)
        words = f"as given by {named}" + (f"; the rest {words}" if len(said) < len(values) else "")
    return Hardware(**{**values, **said}, bf16=host.bf16 or not host.gpus, words=words), problems
