"""What a measurement depends on: job, settings, host and versions. Figures belong together where these are the same."""
from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Optional

import psutil

from debzero import __version__
from debzero.job.contents import digests
from debzero.measure.records import HostFacts
from debzero.resolve import buffers
from debzero.resolve.resolve import ResolvedJob
from debzero.run import report


def identity(resolved: ResolvedJob, settings: Mapping[str, object], host: HostFacts, versions: dict[str, str]) -> str:
    """A digest that is the same for figures that belong together. The output folder and the shardings that were asked
    for do not count."""
    same = {"job": resolved.job.model_dump(mode="json", exclude={"output": True, "zero": True}),
            "settings": dict(settings), "versions": versions, "definitions": DEFINITIONS, "host": host.name,
            "device": host.device, "precision": resolved.precision, "micro_batch": resolved.batch.micro,
            "nvme_path": resolved.job.zero.nvme_path, "favour": resolved.job.zero.favour,
            "engine": resolved.job.zero.engine, "buffers": buffers.sizes(resolved.job.zero),
            "files": digests(resolved.job)}
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]


def command_line() -> str:
    return "debzero " + shlex.join(sys.argv[1:])


def host_facts(resolved: ResolvedJob, name: Optional[str]) -> HostFacts:
    """The hardware and the system. `name`: what to call the host instead of its host name."""
    import torch

    gpus = resolved.host.gpus
    device = torch.device("cuda", 0) if gpus else torch.device("cpu")
    return HostFacts(
        name=name or platform.node(), device=report.device_name(device), gpus=gpus,
        gpu_memory_bytes=int(torch.cuda.get_device_properties(0).total_memory) if gpus else None,
        cuda=torch.version.cuda if gpus else None, driver=_driver(),
        processor=report.device_name(torch.device("cpu")), cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total, system=_os_release(), kernel=platform.release())


def installed() -> dict[str, str]:
    """The versions of the libraries that figures depend on. DeepSpeed's is read from its metadata: importing it takes
    seconds."""
    import torch

    return {"debzero": __version__, "python": platform.python_version(), "torch": str(torch.__version__),
            **{name: metadata.version(name) for name in ("transformers", "deepspeed")}}


def _driver() -> Optional[str]:
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return None


def _os_release() -> str:
    lines = Path("/etc/os-release").read_text().splitlines() if Path("/etc/os-release").is_file() else []
    return next((line.partition("=")[2].strip('"') for line in lines if line.startswith("PRETTY_NAME=")), "")


DEFINITIONS = {
    "batch": "padded to data.max_length, so that all steps are alike and memory is the most that the job can take; a "
             "job that pads each batch to its own longest sample is faster",
    "step": "one optimizer step: the whole global batch, on all ranks, forward, backward and update",
    "memory": "the highest rank's peak: of the GPU, what torch's allocator had handed out (max_memory_allocated); of "
              "a run without a GPU, the process's resident set",
    "device memory": "the highest use of a GPU during the run, by the driver's count, over what was in use before it: "
                     "with the allocator's reserve, the CUDA context and the libraries' buffers, of all ranks on that "
                     "GPU",
    "host memory": "how far the host's available memory fell during the run; what other programs took in that time "
                   "counts, too",
    "speed": "samples of the measured steps / the seconds they took; the warm-up before them does not count, nor do "
             "start, evaluation and saving",
    "spread": "the lowest and the highest of the repeats, each in a process of its own; the figure shown is their "
              "median",
}
