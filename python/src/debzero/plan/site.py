"""The hosts that a prediction is for, as the command line describes them."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, Optional

from debzero.base.errors import InputError, Problem
from debzero.base.text import parse_bytes
from debzero.model import flops
from debzero.plan import rates
from debzero.plan.collectives import Cluster
from debzero.plan.failures import HOST_MTBF_DAYS
from debzero.plan.hardware import Hardware, find_hardware

CPU = "cpu"
ARTICLE_GPU = "A100"  # whose memory plan takes where this host has no GPU


@dataclass(frozen=True)
class Options:
    """The command line's; None: not given. `link`, `disk` and `sizes` (--gpu-memory, --ram and --nvme) are texts."""

    hosts: int
    gpus: Optional[int] = None
    link: Optional[str] = None
    latency_us: Optional[float] = None
    device: Optional[str] = None
    peak_share: Optional[float] = None
    samples_per_second: Optional[float] = None
    mtbf_days: float = HOST_MTBF_DAYS
    disk: str = "1G"
    sizes: Any = None


@dataclass(frozen=True)
class Site:
    """`hardware`: that of all hosts together; `peak_share`: None for what was measured; `disk`: bytes per second at
    which a host writes a checkpoint; `mtbf_days`: days between two failures of one host; `measured`: a rank's samples
    per second, where they are given."""

    cluster: Cluster
    hardware: Hardware
    device: str
    peak_share: Optional[float]
    measured: Optional[float]
    mtbf_days: float
    disk: float

    def share_of_peak(self, task: str) -> float:
        """What training reaches of the GPU's peak."""
        return rates.peak_share(task) if self.peak_share is None else self.peak_share

    def sample_seconds(self, sample_flops: float, precision: str, task: str) -> float:
        """Seconds of one rank for a sample with so many FLOPs. Raises an InputError where that is not known."""
        if self.measured:
            return 1 / self.measured
        problems = rates.device_problem(self.device, precision)
        if not sample_flops:
            problems.append(_no_speed("the FLOPs of this model cannot be counted"))
        if problems:
            raise InputError(problems)
        return sample_flops / (self.share_of_peak(task) * (flops.peak(self.device, precision) or 1))


def find_site(options: Options) -> tuple[Site, list[Problem]]:
    """The hosts, and what is wrong with the options about them."""
    one, problems = find_hardware(options.gpus, options.sizes or {})
    on_cpu, hosts = options.device == CPU, options.hosts
    if options.link is None and hosts > 1:
        problems.append(Problem("the command line", "--link", "is missing: the step time on several hosts depends on "
                                "it", "for example --link 200G"))
    link = _parsed(rates.parse_link, "1" if options.link is None else options.link, "--link", "200G", problems)
    disk = _parsed(parse_bytes, options.disk, "--disk", "2G", problems)
    if on_cpu and options.samples_per_second is None:
        problems.append(_no_speed("how fast a processor trains is not known"))
    device = (one.device or ARTICLE_GPU) if options.device is None else options.device
    hop = rates.TCP_HOP if on_cpu else rates.HOP
    cluster = Cluster(hosts, one.gpus, link, rates.LOOPBACK if on_cpu else rates.local_rate(device),
                      hop if options.latency_us is None else options.latency_us * 1e-6,
                      rates.TCP_HOP if on_cpu else rates.LOCAL_HOP, gloo=on_cpu)
    every = replace(one, gpus=0 if on_cpu else cluster.ranks, ram=one.ram * hosts, nvme=one.nvme * hosts,
                    bf16=one.bf16 and not on_cpu)
    return Site(cluster, every, device, options.peak_share, options.samples_per_second, options.mtbf_days,
                disk), problems


def _parsed(parse: Callable[[str], float], text: str, option: str, example: str, problems: list[Problem]) -> float:
    """The value of an option, 1 where it is none; adds what is wrong with it."""
    try:
        value = parse(text)
        if not value:
            raise ValueError("must be more than 0")
    except ValueError as error:
        problems.append(Problem("the command line", option, str(error), f"for example {option} {example}"))
        return 1.0
    return value


def _no_speed(why: str) -> Problem:
    return Problem("the command line", "--samples-per-second", f"is missing: {why}",
                   "give what one rank trains, as `debzero bench JOB --ranks 1` measures it")
