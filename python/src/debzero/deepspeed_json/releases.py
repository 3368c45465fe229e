"""The releases of DeepSpeed and torch that a configuration is judged for: the installed ones, else the pinned ones."""
from __future__ import annotations

import importlib.metadata
import re
from typing import NamedTuple

from debzero.base.stack import stack


class Releases(NamedTuple):
    deepspeed: str
    torch: str


def _installed(package: str, pinned: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a host that only checks files
        return pinned


def here() -> Releases:
    return Releases(_installed("deepspeed", stack().deepspeed), _installed("torch", stack().torch))


def parsed(release: str) -> tuple[int, ...]:
    """0.16.9+local as (0, 16, 9), to compare releases."""
    return tuple(map(int, re.findall(r"\d+", release.split("+")[0])[:3]))


def overlap_loses_gradients(releases: Releases, stage: int) -> bool:
    """Whether overlap_comm may read or free a buffer of `stage` too early.

    Before DeepSpeed 0.19.0 stages 1 and 2 do not tell torch's allocator of the stream that still uses their buffers
    (#7965), and stage 3 waits for the wrong stream from torch 2.10 on (#7898).
    """
    return parsed(releases.deepspeed) < (0, 19) and (stage < 3 or parsed(releases.torch) >= (2, 10))


def overlap_breaks_compiled_layers(releases: Releases) -> bool:
    """Whether overlap_comm gives NaN at stage 1 and 2 where layers are compiled, which torch does from 2.4 on here.

    Compiled layers fill a bucket from several streams, and before DeepSpeed 0.19.3 (#8080) the reduction waits for one
    of them alone.
    """
    return parsed(releases.torch) >= (2, 4) and parsed(releases.deepspeed) < (0, 19, 3)
