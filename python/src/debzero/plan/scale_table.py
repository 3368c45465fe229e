"""`debzero plan --hosts` as a table or as JSON."""
from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

from debzero.base.text import bytes_text, count_text, printable, rate_text
from debzero.plan.inputs import open_job, tracing
from debzero.plan.rates import link_text
from debzero.plan.scale import RESTARTING, Prediction, Scale
from debzero.plan.site import Options, find_site
from debzero.plan.step_time import HIDDEN

WIDTH = 22  # columns of a layout's name


def plan_scale(path: Path, options: Options, config: Optional[Path], as_json: bool) -> int:
    """The command; returns the exit code. `config`: of --config. Raises an InputError with every problem of the job and
    the command line."""
    opened = open_job(path, config)
    site, problems = find_site(options)
    shapes, settings = opened.inputs(site.hardware, problems, ranks=1)
    with tracing(path, shapes):
        scale = Scale(shapes, settings, site, str(path))
        found = scale.predictions()
    if as_json:
        print(json.dumps(as_dict(path, scale, found), indent=2))
    else:
        print("\n".join(map(printable, as_text(scale, found))))
    return 0


def fastest(found: list[Prediction]) -> Optional[Prediction]:
    """Of the layouts that fit and that debzero trains."""
    possible = [each for each in found if each.fits and each.trains]
    return max(possible, key=lambda each: each.samples_per_second, default=None)


def as_dict(path: Path, scale: Scale, found: list[Prediction]) -> dict[str, Any]:
    """What --json prints: seconds, bytes, FLOPs, and links in bits per second."""
    site, cluster, best = scale.site, scale.site.cluster, fastest(found)
    return {
        "ok": True, "job": str(path), "model": {"parameters": scale.shapes.counts.total, **scale.shapes.facts()},
        "notes": scale.shapes.notes, "precision": scale.precision,
        "cluster": {"hosts": cluster.hosts, "gpus": cluster.gpus, "ranks": cluster.ranks, "device": site.device,
                    "link_bits_per_second": 8 * cluster.link if cluster.hosts > 1 else None,
                    "local_bits_per_second": 8 * cluster.local, "hop_seconds": cluster.hop,
                    "disk_bytes_per_second": site.disk, "host_mtbf_days": site.mtbf_days},
        "sample_flops": scale.sample_flops, "sample_seconds": scale.sample_seconds,
        "peak_share": None if site.measured else site.share_of_peak(scale.shapes.job.task),
        "layouts": [each.as_dict() for each in found],
        "refused": [{"label": label, "reason": reason} for label, reason in scale.refused],
        "fastest": best.label if best else None}


def as_text(scale: Scale, found: list[Prediction]) -> Iterator[str]:
    """The lines for people, at most 100 columns wide."""
    best = fastest(found)
    yield from _heading(scale)
    yield ""
    yield "A step in milliseconds: computing, launching kernels, the pipeline's bubble, and communication,"
    yield "all of it and what nothing hides"
    yield (f"{'':<{WIDTH + 2}}{'micro':>7}{'compute':>9}{'launch':>8}{'bubble':>8}{'comm':>9}{'waits':>9}{'step':>9}"
           f"{'samples/s':>11}{'ideal':>6}")
    for each in found:
        yield _mark(each, best) + _times(each)
    yield ""
    yield "What a rank sends in a step and has on its GPU, in GiB; the link that hides it; a host's checkpoint"
    yield (f"{'':<{WIDTH + 2}}{'sent':>8}{'GPU':>8}{'link':>13}{'GiB':>9}{'writing':>9}{'every':>10}{'lost':>7}"
           f"{'as set':>8}")
    for each in found:
        yield _mark(each, best) + _needs(each)
    yield ""
    for label, reason in scale.refused:
        yield from _wrapped(f"not possible: {label}: {reason}")
    yield from _legend(scale)
    yield ""
    yield (f"Fastest that fits: {best.label}, {rate_text(best.samples_per_second)} samples/s" if best
           else "Nothing fits: use more or larger GPUs, or a smaller micro-batch or model")


def _mark(each: Prediction, best: Optional[Prediction]) -> str:
    mark = "*" if each is best else "x" if not each.fits else " " if each.trains else "o"
    return f"{mark} {each.label:<{WIDTH}}"


def _times(each: Prediction) -> str:
    step, batch = each.case.step(), each.case.batch
    parts = (step.compute, step.launching, step.bubble, sum(transfer.seconds for transfer in step.transfers),
             step.exposed, step.total)
    return (f"{f'{batch.micro}x{batch.accumulation}':>7}" + "".join(
        f"{_milliseconds(seconds):>{width}}" for seconds, width in zip(parts, (9, 8, 8, 9, 9, 9)))
        + f"{rate_text(each.samples_per_second):>11}{step.efficiency:>6.0%}")


def _milliseconds(seconds: float) -> str:
    value = 1000 * seconds
    return "-" if not value else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _needs(each: Prediction) -> str:
    case, cost = each.case, each.checkpoint
    link = case.smallest_link()
    asked = "-" if case.cluster.hosts == 1 else link_text(link).replace("bit/s", "") if link else "none does"
    device = f"{each.memory.device_bytes / 2**30:.2f}" if each.memory else "-"
    sent = sum(transfer.sent for transfer in case.step().transfers)
    return (f"{sent / 2**30:>8.2f}{device:>8}{asked:>13}{cost.host_bytes / 2**30:>9.2f}{cost.seconds:>7.0f} s"
            f"{cost.best_interval / 60:>6.0f} min{cost.lost_share:>7.1%}{cost.own_lost_share:>8.1%}")


def _heading(scale: Scale) -> Iterator[str]:
    site, cluster, shapes = scale.site, scale.site.cluster, scale.shapes
    yield (f"{shapes.name}: {shapes.counts.total / 1e6:.1f} M parameters, {scale.precision}, sequences of "
           f"{shapes.job.data.max_length} tokens, global batch {shapes.job.train.global_batch}")
    what = "rank" if cluster.gloo else site.device
    yield (f"  on {count_text(cluster.hosts, 'host')} x {count_text(cluster.gpus, what)}"
           + (f", {link_text(cluster.link)} between hosts" if cluster.hosts > 1 else "")
           + f", {link_text(cluster.local)} between ranks of a host")
    speed = f"{rate_text(1 / scale.sample_seconds)} samples/s"
    yield (f"  a rank alone trains {speed}, as given" if site.measured else
           f"  a rank computes {speed}: {site.share_of_peak(shapes.job.task):.1%} of the peak of the {site.device}")
    yield from (line for note in shapes.notes for line in _wrapped(f"note: {note}"))


def _legend(scale: Scale) -> Iterator[str]:
    site = scale.site
    yield "*: fastest that fits. x: does not fit. micro: micro-batch x accumulation."
    if site.cluster.hosts > 1:
        yield "o: on paper: debzero trains a divided model on one host so far."
    for text in (
            "ideal: the share of the step in which a rank computes.",
            f"link: the slowest between hosts, in bits per second, with which at most {HIDDEN:.0%} of a step waits for "
            "communication.",
            f"every: the best interval between checkpoints where a host fails once in {site.mtbf_days:.0f} days and "
            f"writes {bytes_text(site.disk)}/s; lost: the time that checkpoints, repeated steps and restarts "
            f"({RESTARTING} s and reading) then take; as set: with the job's checkpoint.minutes "
            f"({scale.shapes.job.checkpoint.minutes:g}).",
            "All of it is predicted; docs/scale.md compares it with measurements."):
        yield from _wrapped(text)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, subsequent_indent="  ")
