"""The hardware that a plan is for."""
from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Optional

from debzero.base.errors import Problem
from debzero.base.text import count_text, parse_bytes
from debzero.resolve.host import this_host

# The defaults where neither the command line nor this host says otherwise: those of the article on BERT-Large that
# docs/benchmarks compares with, two A100.
ARTICLE = {"gpus": 2, "gpu_memory": 40 * 2**30, "ram": 256 * 2**30, "nvme": 2 * 2**40}


@dataclass(frozen=True)
class Hardware:
    """One host. `gpu_memory` (of each GPU), `ram` and `nvme` in bytes; `source`: where the numbers come from."""

    gpus: int
    gpu_memory: int
    ram: int
    nvme: int
    bf16: bool
    source: str
    device: str = ""  # the name of its GPUs, where it is this host

    def as_dict(self) -> dict[str, Any]:
        """As `debzero plan --json` has it."""
        values = asdict(self)
        values["words"] = values.pop("source")
        return values


def find_hardware(gpus: Optional[int], sizes: dict[str, Optional[str]]) -> tuple[Hardware, list[Problem]]:
    """The command line's values, else this host's if it has GPUs, else the article's; and each size that is none.
    `sizes`: texts such as 40G by the fields' names."""
    given, problems = _parsed(sizes)
    if gpus:
        given["gpus"] = gpus
    host = this_host()
    values, source, device = dict(ARTICLE), "the defaults, as this host has no GPU", ""
    if host.gpus:
        import psutil
        import torch

        memory = min(torch.cuda.get_device_properties(number).total_memory for number in range(host.gpus))
        values = {"gpus": host.gpus, "gpu_memory": memory, "ram": psutil.virtual_memory().total, "nvme": 0}
        source, device = "this host's", torch.cuda.get_device_name(0)
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in values if name in given)
        source = f"as given by {options}" + (f"; the rest: {source}" if len(given) < len(values) else "")
    return Hardware(**{**values, **given}, bf16=host.bf16 or not host.gpus, source=source,
                    device=device), problems


def _parsed(sizes: dict[str, Optional[str]]) -> tuple[dict[str, int], list[Problem]]:
    given: dict[str, int] = {}
    problems = []
    for name, text in sizes.items():
        if text is None:
            continue
        try:
            given[name] = parse_bytes(text)
            if name == "gpu_memory" and not given[name]:
                raise ValueError("must be more than 0")
            if 0 < given[name] < 2**20:
                raise ValueError(f"must be a size such as 40G, and {text.strip()} is {count_text(given[name], 'byte')}")
        except ValueError as error:
            option = f"--{name.replace('_', '-')}"
            problems.append(Problem("the command line", option, str(error), f"for example {option} 40G"))
    return given, problems
