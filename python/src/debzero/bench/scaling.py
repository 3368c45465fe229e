"""Whether further GPUs pay: each configuration's speed against that of one rank, and the likely cause where they do
not."""
from __future__ import annotations

from typing import Optional

from debzero.base.text import rate_text
from debzero.bench.results import BenchResults, Row
from debzero.resolve.sharding import BUFFERS

PAYS = 0.6            # of ranks x one rank's samples/s: with less, most of two GPUs' work is waiting
SHORT_SECONDS = 0.03  # of a micro-batch on one rank: the host's work and the exchange take about as long


def factor(bench: BenchResults, row: Row) -> Optional[float]:
    """The samples/s of a configuration over those of one rank; None where either was not measured."""
    if bench.alone is None or row.summary is None:
        return None
    return row.summary.samples_per_second.median / bench.alone.samples_per_second.median


def sentences(bench: BenchResults) -> list[str]:
    """For readers: how all of them scale, then what to try for each that does not pay."""
    found = [(row, times) for row in bench.configurations if (times := factor(bench, row)) is not None]
    if not found or bench.alone is None:
        return []
    ranks, speed = bench.batch.ranks, bench.alone.samples_per_second.median
    return [f"One rank alone, plain DDP with the same micro-batch, trained {rate_text(speed)} samples/s. {ranks} ranks "
            "trained, times that: " + ", ".join(f"{row.label} {times:.2f} ({times / ranks:.0%} of {ranks})"
                                                for row, times in found) + ".",
            *(f"{row.label}: more ranks do not pay ({times / ranks:.0%} is below {PAYS:.0%}). {cause(bench, row)}"
              for row, times in found if times < PAYS * ranks)]


def cause(bench: BenchResults, row: Row) -> str:
    """The likely cause, and what to try."""
    assert bench.alone
    seconds = bench.batch.micro / bench.alone.samples_per_second.median
    if row.offloads:
        return "Offload moves what it saves through the host in each step: use it only where nothing else fits."
    if any(run.fell_out for run in row.runs):
        return "Its steps left the CUDA graphs, so the GPUs wait for the host: the runs' train.log says why."
    zero = bench.job.get("zero")
    zero = zero if isinstance(zero, dict) and row.stage != "none" else {}
    chosen = ["engine"] if zero.get("engine") == "deepspeed" else []
    chosen += [key for key, first in BUFFERS.items() if row.sharding.stage >= first and zero.get(key) is not None]
    if chosen and bench.records_steps:
        keys = " and ".join(f"zero.{key}" for key in chosen)
        return f"DeepSpeed's hooks keep the GPUs waiting for the host: remove {keys}, so that steps are recorded."
    if seconds < SHORT_SECONDS:
        return (f"A micro-batch takes one rank only {1000 * seconds:.0f} ms, about as long as the exchange and the "
                "host's work for it: try a larger train.micro_batch and train.global_batch (`debzero tune`).")
    if row.stage != "none" and not bench.records_steps and zero.get("engine") != "native":
        return (f"DeepSpeed {row.label} waits for the host in each layer: try a lower stage, or a larger "
                "train.micro_batch.")
    return ("The exchange of gradients takes longer than the backward pass: `nvidia-smi topo -m` shows whether the "
            "GPUs have NVLink (NV) or go through the host (PHB, SYS). Without NVLink, accumulate more micro-batches "
            "(a larger train.global_batch).")
