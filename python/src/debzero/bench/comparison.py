"""Several hosts' results on one page."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any, Optional

from debzero.base.text import rate_text, size_text
from debzero.bench import charts
from debzero.bench.charts import Bar
from debzero.bench.page import shell, table, terms

COLOURS = [f"p{number}" for number in range(8)]
# What must be the same where speeds and sizes are to be compared.
SAME = {
    "model": lambda made: made["model"], "precision": lambda made: made["precision"],
    "batch": lambda made: made["batch"]["text"],
    "data": lambda made: f"{made['job']['data']['dataset']}, at most {made['job']['data']['max_length']} tokens",
    "measured": lambda made: f"{made['settings']['steps']} steps after {made['settings']['warmup']}",
}


def names(all_made: Sequence[dict[str, Any]]) -> list[str]:
    """A name for each: the host's, or, where that is not enough, with its device, ranks or number."""
    for name in (lambda made: made["host"]["name"],
                 lambda made: f"{made['host']['name']}, {made['batch']['ranks']} ranks"):
        found = [name(made) for made in all_made]
        if len(set(found)) == len(found):
            return found
    return [f"{number}: {name}" for number, name in enumerate(found, 1)]


def differences(all_made: Sequence[dict[str, Any]]) -> list[str]:
    """What keeps the figures from being compared, in sentences."""
    found = []
    for word, read in SAME.items():
        values = [str(read(made)) for made in all_made]
        if len(set(values)) > 1:
            found.append(f"Not the same {word}: {'; '.join(dict.fromkeys(values))}.")
    for name, made in zip(names(all_made), all_made):
        if not made["speed_comparable"]:
            found.append(f"{name} shared GPUs between ranks: its memory lacks the bucket of overlapped communication, "
                         "its speed is not comparable.")
    return found


def _figure(row: Optional[dict[str, Any]], read: Callable[[dict[str, Any]], float]) -> Optional[float]:
    return read(row["summary"]) if row and row["summary"] else None


def render(all_made: Sequence[dict[str, Any]]) -> str:
    hosts = names(all_made)
    rows = [{row["name"]: row for row in made["configurations"]} for made in all_made]
    labels = {row["name"]: row["label"] for made in all_made for row in made["configurations"]}

    def grouped(read: Callable[[dict[str, Any]], float], show: Callable[[float], str]) -> list[tuple[str, list[Bar]]]:
        made = []
        for name, label in labels.items():
            if all(_figure(row.get(name), read) is None for row in rows):
                continue
            bars = []
            for number, host in enumerate(hosts):
                value = _figure(rows[number].get(name), read)
                bars.append(Bar(host, "no result") if value is None else Bar(host, show(value), value,
                                                                             COLOURS[number % 8]))
            made.append((label, bars))
        return made

    def memory(summary: dict[str, Any]) -> float:
        return float(summary["memory_bytes"])

    def speed(summary: dict[str, Any]) -> float:
        return float(summary["samples_per_second"]["median"])

    def figures(title: str, read: Callable[[dict[str, Any]], float], show: Callable[[float], str]) -> str:
        """A line for each host: there may be many of them, and few configurations."""
        lines = []
        for host, row in zip(hosts, rows):
            found = [_figure(row.get(name), read) for name in labels]
            lines.append((host, "", ["-" if value is None else show(value) for value in found], ""))
        return f'<section class="card"><h2>{title}</h2>{table(["", *labels.values()], lines, title)}</section>'

    models = ", ".join(dict.fromkeys(made["model"] for made in all_made))
    notes = "".join(f'<p class="note">{escape(text)}</p>' for text in differences(all_made))
    legend = [(COLOURS[number % 8], host) for number, host in enumerate(hosts)]
    facts = "".join(
        f'<section class="card"><h2>{escape(host)}</h2>' + terms([
            ("device", made["host"]["device"]), ("GPUs", made["host"]["gpus"] or "none"),
            ("ranks", made["batch"]["ranks"]), ("precision", made["precision"]), ("batch", made["batch"]["text"]),
            ("system", made["host"]["system"]), ("NVIDIA driver", made["host"]["driver"]), *made["versions"].items(),
            ("measured", made["made"][:10])]) + "</section>"
        for host, made in zip(hosts, all_made))
    drawn = (charts.groups("Memory per rank", "The highest peak of any rank; shorter is better.",
                           grouped(memory, size_text), legend)
               + charts.groups("Speed", "Samples a second, median; longer is better.", grouped(speed, rate_text),
                               legend))
    body = (
        f'<header><p class="eyebrow">debzero bench, {len(hosts)} hosts</p><h1>{escape(models)}</h1>{notes}</header>'
        f'<div class="grid two">{drawn}</div>'
        f"{figures('Memory per rank, host by host', memory, size_text)}{figures('Samples a second, host by host', speed, rate_text)}"
        f'<section class="card"><h2>What the words mean</h2>{terms(list(all_made[0]["definitions"].items()))}</section>'
        f'<div class="grid two">{facts}</div>')
    return shell(f"{models}: {len(hosts)} hosts", body)
