"""The page of one bench: a single HTML file (well-formed XML, too) that asks nothing of the network and runs no
script."""
from __future__ import annotations

from pathlib import Path

import yaml

from debzero.base.files import write_json, write_text
from debzero.base.text import bytes_text, count_text, html_text, rate_text
from debzero.bench import article, charts, latency_page
from debzero.bench.charts import Bar
from debzero.bench.markup import notes, section, shell, table, terms
from debzero.bench.results import BenchResults, Row, Summary
from debzero.bench.tables import HEADINGS, as_csv, as_markdown, cells
from debzero.bench.tables import notes as notes_of

NAME = "results.html"
FILES = ("results.json", "results.csv", "results.md", NAME)


def render(bench: BenchResults) -> str:
    head = (f'<p class="eyebrow">debzero bench</p><h1>{html_text(bench.model)} on {html_text(bench.host.device)}</h1>'
            f'<p class="sub">{count_text(bench.settings.ranks, "rank")}, {html_text(bench.precision)}, '
            f"{html_text(str(bench.batch))}; {html_text(bench.made[:10])}</p>")
    trained = [_tiles(bench), f'<div class="grid two">{_memory(bench)}{_speed(bench)}</div>', _table(bench),
               _prediction(bench), _article(bench), _definitions(bench)] if bench.configurations else []
    body = [
        f"<header>{head}{_verdict(bench)}{notes(notes_of(bench))}</header>", *trained, latency_page.render(bench),
        f'<div class="grid two">{_hardware(bench)}{_software(bench)}</div>', _repeat(bench)]
    return shell(f"{bench.model}: debzero bench", "".join(body))


def write(bench: BenchResults, file: Path) -> None:
    """The results in all their forms, beside each other: `file` is the JSON."""
    write_json(file, bench.as_json())
    write_shown(bench, file)


def write_shown(bench: BenchResults, file: Path) -> None:
    """The CSV, the Markdown table and the page beside the results' JSON, under its name."""
    for name, text in zip(FILES[1:], (as_csv(bench), as_markdown(bench), render(bench))):
        write_text(file.with_suffix(Path(name).suffix), text)


def against(share: float) -> str:
    """A share of plain DDP's memory in words: "51% less"."""
    return f"{abs(1 - share):.0%} {'less' if share < 1 else 'more'} than" if abs(1 - share) >= .005 else "the same as"


def _extremes(bench: BenchResults) -> tuple[Row, Row, Row]:
    """Of the measured rows, the one with the least memory, the one with the most, and the fastest."""
    figures: list[tuple[Row, Summary]] = [(row, row.summary) for row in bench.measured if row.summary]
    by_memory = sorted(figures, key=lambda pair: pair[1].memory_bytes)
    fastest = max(figures, key=lambda pair: pair[1].samples_per_second.median)
    return by_memory[0][0], by_memory[-1][0], fastest[0]


def _memory_text(row: Row) -> str:
    return bytes_text(row.summary.memory_bytes if row.summary else None)


def _speed_text(row: Row) -> str:
    return f"{rate_text(row.summary.samples_per_second.median)} samples/s" if row.summary else "-"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _verdict(bench: BenchResults) -> str:
    """The result in one or two sentences."""
    if not bench.configurations:
        return ""
    if not bench.measured:
        return '<p class="lead">Nothing could be measured: each configuration\'s reason is below.</p>'
    least, _, fastest = _extremes(bench)
    share, speed = bench.memory_share(least), bench.speed_share(least)
    text = f"{_capital(least.label)} needs the least memory: {_memory_text(least)} a rank"
    if share is not None and least.name != "baseline":
        text += f", {against(share)} plain DDP"
        if bench.speed_comparable and speed is not None:
            text += f", at {speed:.0%} of its speed"
    text += "."
    if bench.speed_comparable:
        text += f" {_capital(fastest.label)} is the fastest: {_speed_text(fastest)}."
    failed = [row.label for row in bench.configurations if row.summary is None]
    if failed:
        text += f" Without a result: {', '.join(failed)}."
    return f'<p class="lead">{html_text(text)}</p>'


def _tile(name: str, value: str, about: str) -> str:
    return (f'<div class="card tile"><span>{html_text(name)}</span><b>{html_text(value)}</b>'
            f"<span>{html_text(about)}</span></div>")


def _tiles(bench: BenchResults) -> str:
    if not bench.measured:
        return ""
    least, most, fastest = _extremes(bench)
    tiles = [_tile("least memory per rank", _memory_text(least), least.label),
             _tile("most memory per rank", _memory_text(most), most.label)]
    if bench.speed_comparable:
        tiles.append(_tile("highest speed", _speed_text(fastest), fastest.label))
    else:
        tiles.append(_tile("a rehearsal", count_text(bench.settings.ranks, "rank"),
                           f"on {count_text(bench.host.gpus, 'GPU')}: speed is not comparable"))
    return f'<div class="grid three">{"".join(tiles)}</div>'


def colour(row: Row) -> str:
    """A class of page.css."""
    return "p4" if row.configuration.divides else f"c{row.sharding.stage}"


def _no_bar(row: Row) -> Bar:
    return Bar(row.label, row.reason.split(":")[0])


def _hatching(bars: list[Bar]) -> str:
    return " Hatched: with offload." if any(bar.hatched for bar in bars) else ""


def _memory(bench: BenchResults) -> str:
    bars = [Bar(row.label, _memory_text(row), row.summary.memory_bytes, colour(row), row.offloads)
            if row.summary else _no_bar(row) for row in bench.configurations]
    caption = f"The highest rank's peak; shorter is better.{_hatching(bars)}"
    if bench.host.gpu_memory_bytes:
        caption += f" The GPU has {bytes_text(bench.host.gpu_memory_bytes)}."
    return charts.figure("Memory per rank", caption, bars)


def _speed(bench: BenchResults) -> str:
    bars = []
    for row in bench.configurations:
        if row.summary:
            speed = row.summary.samples_per_second
            bars.append(Bar(row.label, rate_text(speed.median), speed.median, colour(row), row.offloads,
                            (speed.lowest, speed.highest)))
        else:
            bars.append(_no_bar(row))
    repeats = max((row.summary.repeats for row in bench.configurations if row.summary), default=0)
    caption = f"Samples a second; longer is better.{_hatching(bars)}" + (
        f" Median of {repeats} runs; the line spans the lowest and the highest." if repeats > 1 else " One run each.")
    return charts.figure("Speed", caption, bars, "" if bench.speed_comparable else "not comparable")


def _table(bench: BenchResults) -> str:
    rows = [(row.label, row.configuration.about, cells(bench, row), row.reason) for row in bench.configurations]
    return section("All figures", table(("", *HEADINGS), rows, "All figures"), long=True)


def _prediction(bench: BenchResults) -> str:
    """The split that `debzero plan` predicts, with the measured peak as a mark across it."""
    rows = [(row, row.predicted) for row in bench.configurations if row.predicted]
    if not rows:
        return ""
    names = list(dict.fromkeys(name for _, predicted in rows for name in predicted.parts))
    colours = {name: f"p{number % 8}" for number, name in enumerate(names)}
    bars, lines = [], []
    for row, predicted in rows:
        measured, total = row.summary.memory_bytes if row.summary else None, predicted.total_bytes
        parts = [(colours[name], size) for name, size in predicted.parts.items()]
        bars.append(Bar(row.label, bytes_text(total), parts=parts, mark=measured))
        difference = f"{total / measured - 1:+.1%}" if measured else "-"
        lines.append((row.label, "", [*(bytes_text(predicted.parts.get(name)) for name in names),
                                      bytes_text(total), bytes_text(measured), difference], ""))
    caption = "Predicted by debzero plan, before the run. The line across a bar is the measured peak."
    shown = table(["", *names, "predicted", "measured", "difference"], lines, "Predicted and measured memory per rank")
    return (charts.groups("What the memory holds", caption, [("", bars)], [(colours[name], name) for name in names])
            + section("Predicted and measured", shown))


def _article(bench: BenchResults) -> str:
    if not article.is_comparable(bench):
        return ""
    own = {row.sharding: row for row in bench.configurations if not row.configuration.divides}
    lines = []
    for printed in article.ROWS:
        row = own.get(printed.sharding)
        here = row.summary if row else None
        lines.append((printed.sharding.label, "", [
            printed.memory, bytes_text(here.memory_bytes if here else None), f"{printed.steps_per_second:g}",
            rate_text(here.steps_per_second.median) if here else "-"], ""))
    text = article.ABOUT
    if not bench.speed_comparable:
        text += " Ranks shared GPUs here, so steps/s are not comparable with anything."
    headings = ["", "article: memory", "here: memory per rank", "article: steps/s", "here: steps/s"]
    return section("Beside the article",
                   f'<p>{html_text(text)}</p>{table(headings, lines, "The article and this bench")}')


def _definitions(bench: BenchResults) -> str:
    settings = bench.settings
    how = (f"{count_text(settings.warmup, 'step')} to warm up, then {count_text(settings.steps, 'measured step')}. "
           "Each run is a process of its own, and all configurations run once before any runs again. All see the same "
           "batches in the same order.")
    return section("Definitions", f"<p>{html_text(how)}</p>{terms(list(bench.definitions.items()))}")


def _hardware(bench: BenchResults) -> str:
    host = bench.host
    pairs = [("host", host.name), ("device", host.device), ("GPUs", host.gpus or "none"),
             ("GPU memory", bytes_text(host.gpu_memory_bytes) if host.gpu_memory_bytes else None),
             ("processor", host.processor), ("host memory", bytes_text(host.memory_bytes))]
    return section("Hardware", terms(pairs))


def _software(bench: BenchResults) -> str:
    host = bench.host
    return section("Software", terms([("system", host.system), ("kernel", host.kernel), ("NVIDIA driver", host.driver),
                                      ("CUDA", host.cuda), *bench.versions.items()]))


def _block(text: str) -> str:
    return "\n".join(map(html_text, text.split("\n")))


def _repeat(bench: BenchResults) -> str:
    """What it takes to measure the same elsewhere."""
    job = yaml.safe_dump(bench.job, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)
    return section("Measure it yourself",
                   f'<pre>{_block(bench.command)}</pre><p class="sub">The job, {html_text(bench.job_file)}, with every '
                   f"key:</p><pre>{_block(job)}</pre>", long=True)
