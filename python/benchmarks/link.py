#!/usr/bin/env python3
"""`debzero plan --hosts` against the steps that two hosts with a slow link between them really take.

Run it as root on any Linux host with `ip` and `tc` (iproute2), with the Python that has debzero's libraries:

    link.py --results link.json                        # measure all, or what is missing
    link.py --results link.json --only none/1G none    # only these, again
    link.py --results link.json --show                 # the table

Each rank is a processor in a network namespace of its own; the two are connected by a pair of virtual interfaces whose
rate `tc` limits (token bucket, both directions). They train a small BERT over gloo, in each ZeRO stage at each rate.
plan is given what such a rank trains without the other (the slower of two that train at the same time, as both share
this machine), and what an all-reduce reaches over the link as the stage's engine sends it. So other work on the
machine does harm, but less than it might. Exit code 1: a prediction is more than a quarter off.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional

import common
import pairs
import yaml

from debzero.base.environment import Environment
from debzero.base.files import read_json, write_json
from debzero.job.schema import Job
from debzero.measure.run import end_on_signals
from debzero.plan import rates
from debzero.plan.model_shapes import Shapes
from debzero.plan.scale import Scale
from debzero.plan.site import CPU, Options, find_site
from debzero.resolve.native import BUCKET
from debzero.resolve.sharding import Sharding
from debzero.run.folder import RunFolder
from debzero.run.records import read_metrics

# Two buckets of gradients, so that one can be sent while the other is computed.
SHAPE = {"vocab_size": 32000, "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8,
         "intermediate_size": 2048}
BATCH, MICRO, LENGTH = 2, 1, 32  # samples of a rank and step, and of a micro-batch; tokens
ALONE = "alone"  # the runs of one rank without the other
STAGES = ("none", "1", "2", "3", "pipeline2")
RATES = ("200M", "500M", "1G")
WARMUP, STEPS = 1, 5
WITHIN = 0.25  # of the measured step
PORT = 29777
PACKAGES = ("torch", "deepspeed", "transformers", "numpy")
# Prints the bits per second that an all-reduce of a bucket of `size` elements moves over the link (nccl-tests' bus
# bandwidth, which for two ranks is the size over the time), and the seconds of a hop, of which one of a single element
# takes two. Plain DDP sends a layer's gradients as they are, which gloo copies into one tensor and back; DeepSpeed's
# stages send one tensor. So either is measured as its engine sends it, from `tensors` fresh ones.
PROBE = """
import json, statistics, sys, time, warnings
import torch
import torch.distributed as dist

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
dist.init_process_group("gloo")

def seconds(elements, tensors, times):
    found = []
    for _ in range(times):
        parts = [torch.zeros(elements // tensors) for _ in range(tensors)]
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(*parts) if tensors == 1 else dist.all_reduce_coalesced(parts)
        found.append(time.perf_counter() - began)
    return statistics.median(found)

size, tensors = map(int, sys.argv[1:])
print(json.dumps([4 * 8 * size / seconds(size, tensors, 5), seconds(1, 1, 50) / 2]))
dist.barrier()
dist.destroy_process_group()
"""


def job_values(stage: str, ranks: int) -> dict[str, Any]:
    """The job, but for its folders."""
    return {"model": {"type": "bert", **SHAPE}, "output": "out", "ranks": ranks,
            "data": {"dataset": "data", "text": ["sentence1", "sentence2"], "label": "label", "max_length": LENGTH,
                     "padding": "max_length"},
            "train": {"global_batch": BATCH * ranks, "micro_batch": MICRO, "precision": "fp32", "log_every": 1},
            "zero": {"stage": int(stage) if stage.isdigit() else "none"},
            "parallel": {"pipeline": 2} if stage == "pipeline2" and ranks > 1 else {},
            "checkpoint": {"minutes": 10**6}}


@dataclass(frozen=True)
class Cell:
    """One measured case. Times in seconds of a step, the link in bits per second."""

    name: str
    label: str
    bits_per_second: float
    alone: float
    measured: float
    predicted: float

    @property
    def ratio(self) -> float:
        return self.predicted / self.measured

    @property
    def is_close(self) -> bool:
        return abs(self.ratio - 1) <= WITHIN


def of_two(run: dict[str, Any]) -> float:
    """Seconds of a step of two ranks, each of which waits for the slower."""
    return statistics.median(map(max, zip(*run["steps"])))


def predicted_seconds(results: dict[str, Any]) -> Iterator[Cell]:
    """Each run of two ranks in the results, beside its prediction."""
    runs = results["runs"]
    for name, run in runs.items():
        stage = name.split("/")[0]
        if run["link"] is None:
            continue
        own = of_two(runs[f"{stage}/{ALONE}"])
        reached, hop = run["link"]["bits_per_second"], run["link"]["hop_seconds"]
        options = Options(2, 1, link=f"{reached:.0f}", device=CPU, samples_per_second=BATCH / own,
                          latency_us=hop * 1e6)
        job = Job.model_validate(job_values(stage, 2))
        scale = Scale(Shapes(job, "link.yml", None), None, find_site(options)[0], "link.yml")
        wanted = "pipeline 2" if stage == "pipeline2" else Sharding(0 if stage == "none" else int(stage)).label
        found = next(each for each in scale.predictions() if each.label == wanted)
        yield Cell(name, found.label, reached, own, statistics.median(run["steps"][0]),
                   found.case.step().total)


class Place(NamedTuple):
    """A network namespace with one end of the link."""

    namespace: str
    interface: str
    address: str

    def run(self, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *command]


def places() -> tuple[Place, Place]:
    """Of this process alone, so that others' namespaces stay as they are."""
    return tuple(Place(f"debzero-{os.getpid()}-{end}", f"dz{os.getpid() % 10**6}{end}", f"10.77.0.{number}")
                 for number, end in enumerate("ab", 1))  # type: ignore[return-value]


def command(*words: str) -> None:
    subprocess.run(words, check=True)


@contextmanager
def linked(hosts: tuple[Place, Place]) -> Iterator[None]:
    """Two namespaces and the link between them."""
    try:
        for host in hosts:
            command("ip", "netns", "add", host.namespace)
        first, second = hosts
        command("ip", "link", "add", first.interface, "netns", first.namespace, "type", "veth", "peer", "name",
                second.interface, "netns", second.namespace)
        for host in hosts:
            command("ip", "-n", host.namespace, "addr", "add", f"{host.address}/30", "dev", host.interface)
            for interface in (host.interface, "lo"):
                command("ip", "-n", host.namespace, "link", "set", interface, "up")
        yield
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.namespace], check=False)


def limit(hosts: tuple[Place, Place], rate: str) -> None:
    """Let each end send at most this many bits per second. The bucket holds what is sent in ten milliseconds."""
    burst = max(128 * 1024, round(rates.parse_link(rate) / 100))
    for host in hosts:
        command(*host.run("tc", "qdisc", "replace", "dev", host.interface, "root", "tbf", "rate",
                          f"{rate.lower()}bit", "burst", str(burst), "latency", "50ms"))


def variables(hosts: tuple[Place, Place], rank: int, ranks: int) -> dict[str, str]:
    """The environment of a rank in its namespace; the only one of its training where `ranks` is 1."""
    return {**common.variables_of(sys.executable, OMP_NUM_THREADS="1", LOCAL_SIZE="1", DS_ACCELERATOR="cpu",
                                  CUDA_VISIBLE_DEVICES="", GLOO_SOCKET_IFNAME=hosts[rank].interface, LOCAL_RANK="0",
                                  RANK=str(rank if ranks > 1 else 0), WORLD_SIZE=str(ranks),
                                  MASTER_ADDR=hosts[0].address, MASTER_PORT=str(PORT)),
            **Environment(measured=True).variables()}


def probe(hosts: tuple[Place, Place], stage: str, timeout: float) -> dict[str, float]:
    """Bits per second that an all-reduce of a whole bucket reaches over the link, as the stage's engine sends it; and
    the seconds of a hop."""
    tensors = "1" if stage.isdigit() else "16"
    started = [subprocess.Popen(host.run(sys.executable, "-c", PROBE, str(BUCKET), tensors),
                                stdout=subprocess.PIPE, text=True, env=variables(hosts, rank, 2))
               for rank, host in enumerate(hosts)]
    try:
        found = [json.loads(process.communicate(timeout=timeout)[0]) for process in started]
    finally:
        for process in started:
            process.kill()
    return {"bits_per_second": found[0][0], "hop_seconds": found[0][1]}


def train(options: argparse.Namespace, hosts: tuple[Place, Place], name: str, stage: str) -> list[list[float]]:
    """Seconds of each measured step: of both ranks together, or, alone, of each of two trainings."""
    alone = name.endswith(ALONE)
    processes, outputs = [], []
    for rank, host in enumerate(hosts):
        run = options.folder / (f"{name}-{rank}" if alone else name).replace("/", "-")
        run.mkdir(parents=True, exist_ok=True)
        output = run / "out"
        values = job_values(stage, ranks=1 if alone else 2)
        values["train"].update(max_steps=WARMUP + options.steps, epochs=WARMUP + options.steps)
        (run / "job.yml").write_text(yaml.safe_dump({
            **values, "model": str(options.folder / "model"), "output": str(output),
            "data": {**values["data"], "dataset": str(options.folder / "data")}}))
        with open(run / f"rank{rank}.log", "w", encoding="utf-8") as log:
            processes.append(subprocess.Popen(
                host.run(sys.executable, str(common.SOURCE / "train.py"), "--job", str(run / "job.yml"), "--again"),
                stdout=log, stderr=subprocess.STDOUT, env=variables(hosts, rank, 1 if alone else 2),
                start_new_session=True))
        outputs.append(output)
    try:
        codes = [process.wait(timeout=options.timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        raise common.Failed(f"{name}: exit codes {codes}; the logs are in {outputs[0].parent}")
    return [_steps(output) for output in outputs[:2 if alone else 1]]


def _steps(output: Path) -> list[float]:
    lines = read_metrics(RunFolder(str(output)).metrics_file)
    return [line.interval_seconds for line in lines if line.step > WARMUP and line.interval_seconds]


def measure(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Add what is missing to the results, and write them after each run."""
    if not (options.folder / "model").is_dir():
        pairs.write_model(options.folder / "model", SHAPE)
        pairs.write_pairs(options.folder / "data", rows=400, held_out=8, vocabulary=SHAPE["vocab_size"])
    hosts = places()
    with linked(hosts):
        for stage in options.stages:
            for end in (ALONE, *options.rates):
                name = f"{stage}/{end}"
                if name in results["runs"] and name not in options.only or options.only and name not in options.only:
                    continue
                link: Optional[dict[str, float]] = None
                if end in options.rates:
                    limit(hosts, end)
                    link = probe(hosts, stage, options.timeout)
                steps = train(options, hosts, name, stage)
                results["runs"][name] = {"link": link, "steps": steps, "load": os.getloadavg()[0]}
                write_json(options.results, results)
                print(f"{name:<16} {statistics.median(sum(steps, [])):8.3f} s a step", flush=True)


def show(results: dict[str, Any]) -> int:
    """Print the table; the exit code."""
    cells = list(predicted_seconds(results))
    print(common.table([["stage/rate", "reached", "alone, s", "measured, s", "predicted, s", "ratio"], *(
        [cell.name, f"{cell.bits_per_second / 1e6:.0f} Mbit/s", f"{cell.alone:.2f}", f"{cell.measured:.2f}",
         f"{cell.predicted:.2f}", f"{cell.ratio:.2f}"] for cell in cells)]))
    return int(not all(cell.is_close for cell in cells))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="the JSON to write, complete or show")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "debzero-link",
                        help="where the trainings write (default: %(default)s)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--rates", nargs="+", default=list(RATES), metavar="RATE", help="such as 500M")
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE/RATE", help="measure these again")
    parser.add_argument("--steps", type=int, default=STEPS, help="measured steps of each run (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that one run may take")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    options = parser.parse_args()
    options.folder = options.folder.absolute()
    end_on_signals()
    if not options.show:
        results = read_json(options.results) if options.results.is_file() else {
            "command": "python python/benchmarks/link.py --results docs/benchmarks/link.json",
            "host": common.processor(), "versions": common.versions(sys.executable, *PACKAGES), "runs": {}}
        measure(options, results)
    return show(read_json(options.results))


if __name__ == "__main__":
    sys.exit(main())
