"""How fast a GPU, its processor and its links are where they were measured: the constants of step_time. A test computes
those again that come from docs/benchmarks."""
from __future__ import annotations

import re

from debzero.base.errors import Problem
from debzero.model import flops
from debzero.resolve.layout import Layout

# The share of the GPU's peak that training reaches where no step waits for the processor: speed-h200.json, max_length.
# A model that predicts every token also reads and writes the logits of its vocabulary: gpus-2.json, GPT-2 XL's native3.
PEAK_SHARE, TOKENS_PEAK_SHARE = 0.372, 0.312
# Seconds that the processor takes to launch what a micro-batch does with one weight or bias of a layer, forward and
# backward, where the step is not recorded as a CUDA graph; by stage of DeepSpeed, 0 for debzero's own engines. From
# what steps took beyond their FLOPs on H200s: the middle of the rows in docs/scale.md, whose hosts differ.
LAUNCHING = {0: 0.165e-3, 1: 0.27e-3, 2: 0.36e-3, 3: 1.95e-3}
# The same from gpus-2.json: of GPT-2 Medium, DeepSpeed's stage 3 that gathers whole layers (zero.favour: speed); of it
# and BERT-Large, debzero's divided models, which are not compiled.
WHOLE_LAYERS_LAUNCHING = 0.744e-3
PIPELINE_LAUNCHING, TENSOR_LAUNCHING = 0.239e-3, 0.462e-3

# Bytes per second of one direction between GPUs of a host, from the datasheets (which count both directions): NVLink;
# for any other GPU PCIe 4.0 x16.
NVLINK = {"GB200": 900e9, "B200": 900e9, "GH200": 450e9, "H200": 450e9, "H100 PCIe": 300e9, "H100 NVL": 300e9,
          "H100": 450e9, "H800": 200e9, "A100": 300e9, "A800": 200e9, "A30": 100e9, "V100S": 31.5e9,
          "V100-PCIE": 31.5e9, "V100": 150e9}
PCIE = 31.5e9
LOCAL_SHARE = 0.72  # of that; an all-reduce of 1340 MiB between two H200s took 4.3 ms
# Seconds of a hop: NCCL's own figures for a ring (src/graph/tuning.cc, hwLatencies, protocol Simple).
HOP, LOCAL_HOP = 14e-6, 3.4e-6
# Between processors that exchange through the kernel's TCP, nothing is known beforehand but that it is slower.
TCP_HOP, LOOPBACK = 100e-6, 2e9

TOKENS = {"causal-lm", "text-to-text"}
UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def predicts_tokens(task: str) -> bool:
    return task in TOKENS


def peak_share(task: str) -> float:
    """What was measured for the task, or for one like it."""
    return TOKENS_PEAK_SHARE if predicts_tokens(task) else PEAK_SHARE


def launching(layout: Layout, stage: int, favour: str) -> float:
    """Seconds of one weight or bias of a layer, and micro-batch. `stage`: DeepSpeed's, 0 for debzero's own engines;
    `favour`: the job's zero.favour."""
    if layout.each > 1:
        return TENSOR_LAUNCHING if layout.tensor > 1 else PIPELINE_LAUNCHING
    return WHOLE_LAYERS_LAUNCHING if stage == 3 and favour == "speed" else LAUNCHING[stage]


def parse_link(text: str) -> float:
    """Bytes per second of a rate in bits, such as 200G or 100M; powers of 1000, as links are sold. Raises a ValueError
    for anything else."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([KMGT]?)(?:bit(?:/s)?|bps)?", text.strip(),
                         re.IGNORECASE | re.ASCII)  # else the sign of kelvin would be a K
    bits = float(found[1]) * UNITS[found[2].upper()] if found else 0.0
    if bits < 1:
        raise ValueError(f"must be a rate in bits per second such as 200G or 100M, not {text[:40]!r}")
    return bits / 8


def link_text(rate: float) -> str:
    """Bytes per second as a link's rate for people: 200 Gbit/s, 1.5 Mbit/s."""
    bits = rate * 8
    unit, size = next((item for item in reversed(UNITS.items()) if bits >= item[1]), ("", 1.0))
    return f"{bits / size:.3g} {unit}bit/s"


def local_rate(device: str) -> float:
    """Bytes per second, in one direction, that a collective reaches between GPUs of this name."""
    found = next((name for name in NVLINK if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", device)), None)
    return LOCAL_SHARE * (NVLINK[found] if found else PCIE)


def device_problem(device: str, precision: str) -> list[Problem]:
    """Whether the peak of a GPU is unknown."""
    if flops.peak(device, precision):
        return []
    if flops.peak(device, "fp32"):
        return [Problem("the command line", "--device", f"{device} does not compute in {precision}",
                        "choose a newer GPU, or another train.precision")]
    return [Problem("the command line", "--device", f"the peak of {device!r} is not known",
                    f"use one of {', '.join(flops.PEAKS)}; or give --samples-per-second")]
