"""Several hosts' results on one page."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Optional

from debzero.base.text import bytes_text, count_text, html_text, rate_text
from debzero.bench import charts
from debzero.bench.charts import Bar
from debzero.bench.markup import notes, section, shell, table, terms
from debzero.bench.results import BenchResults, Summary

COLOURS = [f"p{number}" for number in range(8)]
Read = Callable[[Summary], float]
Show = Callable[[float], str]


def _data(bench: BenchResults) -> str:
    data = bench.job.get("data")
    return f"{data.get('dataset')}, at most {data.get('max_length')} tokens" if isinstance(data, dict) else "unknown"


# What must be the same where speeds and memory are to be compared.
SAME: dict[str, Callable[[BenchResults], str]] = {
    "model": lambda bench: bench.model, "precision": lambda bench: bench.precision,
    "batch": lambda bench: str(bench.batch), "data": _data,
    "length of the measurement": lambda bench: f"{bench.settings.steps} steps after {bench.settings.warmup}",
}


def names(benches: Sequence[BenchResults]) -> list[str]:
    """A name for each: the host's, or, where that is not enough, with its ranks or a number."""
    by_host = [bench.host.name for bench in benches]
    by_ranks = [f"{bench.host.name}, {count_text(bench.settings.ranks, 'rank')}" for bench in benches]
    for found in (by_host, by_ranks):
        if len(set(found)) == len(found):
            return found
    return [f"{number}: {name}" for number, name in enumerate(by_ranks, 1)]


def differences(benches: Sequence[BenchResults]) -> list[str]:
    """What keeps the figures from being compared, in sentences."""
    found = []
    for what, read in SAME.items():
        values = list(dict.fromkeys(read(bench) for bench in benches))
        if len(values) > 1:
            found.append(f"The {what} differs: {'; '.join(values)}.")
    for name, bench in zip(names(benches), benches):
        if not bench.speed_comparable:
            found.append(f"{name} shared GPUs between ranks: its memory lacks the bucket of overlapped communication, "
                         "and its speed is not comparable.")
    return found


class _Figures:
    """Each host's summaries by configuration."""

    def __init__(self, benches: Sequence[BenchResults]) -> None:
        self.hosts = names(benches)
        self.summaries = [{row.name: row.summary for row in bench.configurations} for bench in benches]
        self.labels = {row.name: row.label for bench in benches for row in bench.configurations}

    def values(self, name: str, read: Read) -> list[Optional[float]]:
        """A configuration's figure on each host; None where it was not measured."""
        found = [summaries.get(name) for summaries in self.summaries]
        return [read(summary) if summary else None for summary in found]

    def groups(self, read: Read, show: Show) -> list[tuple[str, list[Bar]]]:
        """For each configuration that any host measured, a bar for each host."""
        found = []
        for name, label in self.labels.items():
            values = self.values(name, read)
            if any(value is not None for value in values):
                found.append((label, [Bar(host, "no result") if value is None
                                      else Bar(host, show(value), value, COLOURS[number % len(COLOURS)])
                                      for number, (host, value) in enumerate(zip(self.hosts, values))]))
        return found

    def table(self, title: str, read: Read, show: Show) -> str:
        """A line for each host: there may be many of them, and few configurations."""
        columns = [self.values(name, read) for name in self.labels]
        rows = [(host, "", ["-" if value is None else show(value) for value in values], "")
                for host, values in zip(self.hosts, zip(*columns))]
        return section(title, table(["", *self.labels.values()], rows, title))


def _host_facts(bench: BenchResults) -> dict[str, str]:
    host = bench.host
    facts = {"device": host.device, "GPUs": host.gpus or "none", "ranks": bench.settings.ranks,
             "precision": bench.precision, "batch": bench.batch, "system": host.system, "NVIDIA driver": host.driver,
             **bench.versions, "measured": bench.made[:10]}
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def _facts(hosts: Sequence[str], benches: Sequence[BenchResults]) -> str:
    """What all hosts have in common, once, and what differs, host by host."""
    every = [_host_facts(bench) for bench in benches]
    common = {name: value for name, value in every[0].items() if all(facts.get(name) == value for facts in every)}
    differing = [name for name in dict.fromkeys(name for facts in every for name in facts) if name not in common]
    rows = [(host, "", [facts.get(name, "-") for name in differing], "") for host, facts in zip(hosts, every)]
    shown = f'<div class="facts">{table(["", *differing], rows, "What differs, host by host")}</div>'
    differ = section("What differs", shown) if differing else ""
    return differ + (section("The same on all hosts", terms(list(common.items()))) if common else "")


def render(benches: Sequence[BenchResults]) -> str:
    figures = _Figures(benches)
    legend = [(COLOURS[number % len(COLOURS)], host) for number, host in enumerate(figures.hosts)]
    models = ", ".join(dict.fromkeys(bench.model for bench in benches))

    def memory(summary: Summary) -> float:
        return summary.memory_bytes

    def speed(summary: Summary) -> float:
        return summary.samples_per_second.median

    keyed = len(legend) <= len(COLOURS)  # each host has a colour of its own
    drawn = (charts.groups("Memory per rank", "The highest peak of any rank; shorter is better.",
                           figures.groups(memory, bytes_text), legend, keyed)
             + charts.groups("Speed", "Samples a second, median; longer is better.", figures.groups(speed, rate_text),
                             legend, keyed))
    body = (
        f'<header><p class="eyebrow">debzero bench, {count_text(len(figures.hosts), "host")}</p>'
        f'<h1>{html_text(models)}</h1>'
        f'{notes(differences(benches))}</header><div class="grid two">{drawn}</div>'
        + figures.table("Memory per rank, host by host", memory, bytes_text)
        + figures.table("Samples a second, host by host", speed, rate_text)
        + section("Definitions", terms(list(benches[0].definitions.items()))) + _facts(figures.hosts, benches))
    return shell(f"{models}: {count_text(len(figures.hosts), 'host')}", body)
