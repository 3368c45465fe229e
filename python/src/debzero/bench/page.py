"""The page of one bench: a single HTML file (well-formed XML, too) that asks nothing of the network and runs no
script."""
from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, Optional

import yaml

from debzero.base.files import write_json, write_text
from debzero.base.text import rate_text, size_text
from debzero.bench import charts
from debzero.bench.charts import Bar
from debzero.bench.results import HEADINGS, as_csv, as_markdown, cells, notes, of_baseline, reason

NAME = "results.html"
FILES = ("results.json", "results.csv", "results.md", NAME)


def render(made: dict[str, Any]) -> str:
    batch = made["batch"]
    ranks = f"{batch['ranks']} rank{'s' if batch['ranks'] > 1 else ''}"
    head = (f'<p class="eyebrow">debzero bench</p><h1>{escape(made["model"])} on {escape(made["host"]["device"])}</h1>'
            f'<p class="sub">{ranks}, {escape(made["precision"])}, {escape(batch["text"])}; '
            f'{escape(made["made"][:10])}</p>')
    body = [
        f"<header>{head}{_verdict(made)}{_notes(notes(made))}</header>", _tiles(made),
        f'<div class="grid two">{_memory(made)}{_speed(made)}</div>', _table(made), _prediction(made), _article(made),
        _definitions(made), f'<div class="grid two">{_hardware(made["host"])}{_software(made)}</div>', _again(made)]
    return shell(f"{made['model']}: debzero bench", "".join(body))


def write(made: dict[str, Any], file: Path) -> None:
    """The results in all their forms: `file` is the JSON that the others, beside it, are made from."""
    write_json(file, made)
    for name, text in zip(FILES[1:], (as_csv(made), as_markdown(made), render(made))):
        write_text(file.with_suffix(Path(name).suffix), text)


def shell(title: str, body: str) -> str:
    """A whole page around `body`."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
            # Even a mistake in this file cannot make a page that asks for something.
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'"/>'
            f"<title>{escape(title)}</title><style>\n{style}</style></head>\n"
            f'<body>{charts.PATTERNS}<main class="page">{body}'
            "<footer>Made by debzero bench, from JSON that holds the same figures run by "
            "run.</footer></main></body></html>\n")


def _measured(made: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in made["configurations"] if row["summary"]]


def against(share: Optional[float], less: str, more: str) -> str:
    """A share of the baseline in words: "51% less"."""
    if share is None:
        return ""
    return f"{abs(1 - share):.0%} {less if share < 1 else more}" if abs(1 - share) >= .005 else "the same"


def _verdict(made: dict[str, Any]) -> str:
    """The result in one or two sentences."""
    rows = _measured(made)
    if not rows:
        return '<p class="lead">Nothing could be measured: each configuration\'s reason is below.</p>'
    least = min(rows, key=lambda row: row["summary"]["memory_bytes"])
    shares = of_baseline(made, least)
    text = f"{least['label']} needs the least memory: {size_text(least['summary']['memory_bytes'])} a rank"
    if shares["memory"] is not None and least["name"] != "baseline":
        text += f", {against(shares['memory'], 'less', 'more')} than the baseline"
        if made["speed_comparable"] and shares["speed"] is not None:
            text += f", at {shares['speed']:.0%} of its speed"
    text += "."
    if made["speed_comparable"]:
        fast = max(rows, key=lambda row: row["summary"]["samples_per_second"]["median"])
        text += f" {fast['label']} is the fastest: {rate_text(fast['summary']['samples_per_second']['median'])} samples/s."
    failed = [row["label"] for row in made["configurations"] if row["summary"] is None]
    if failed:
        text += f" Without a result: {', '.join(failed)}."
    return f'<p class="lead">{escape(text)}</p>'


def _notes(texts: Sequence[str]) -> str:
    return "".join(f'<p class="note">{escape(text)}</p>' for text in texts)


def _tile(name: str, value: str, words: str) -> str:
    return f'<div class="card tile"><span>{escape(name)}</span><b>{escape(value)}</b><span>{escape(words)}</span></div>'


def _tiles(made: dict[str, Any]) -> str:
    rows = _measured(made)
    if not rows:
        return ""
    least = min(rows, key=lambda row: row["summary"]["memory_bytes"])
    most = max(rows, key=lambda row: row["summary"]["memory_bytes"])
    tiles = [_tile("least memory per rank", size_text(least["summary"]["memory_bytes"]), least["label"]),
             _tile("most memory per rank", size_text(most["summary"]["memory_bytes"]), most["label"])]
    if made["speed_comparable"]:
        fast = max(rows, key=lambda row: row["summary"]["samples_per_second"]["median"])
        tiles.append(_tile("highest speed", f"{rate_text(fast['summary']['samples_per_second']['median'])} samples/s",
                           fast["label"]))
    else:
        tiles.append(_tile("a rehearsal", f"{made['batch']['ranks']} ranks",
                           f"on {made['host']['gpus']} GPU: speed is not comparable"))
    return f'<div class="grid three">{"".join(tiles)}</div>'


def colour(row: dict[str, Any]) -> str:
    return "c0" if row["stage"] == "none" else f"c{row['stage']}"


def _memory(made: dict[str, Any]) -> str:
    bars = []
    for row in made["configurations"]:
        if row["summary"]:
            most = row["summary"]["memory_bytes"]
            bars.append(Bar(row["label"], size_text(most), most, colour(row), row["offload_optimizer"] != "none"))
        else:
            bars.append(Bar(row["label"], reason(row).split(":")[0]))
    caption = "The highest rank's peak; shorter is better. Hatched: with offload."
    if made["host"]["gpu_memory_bytes"]:
        caption += f" The GPU has {size_text(made['host']['gpu_memory_bytes'])}."
    return charts.figure("Memory per rank", caption, bars)


def _speed(made: dict[str, Any]) -> str:
    bars = []
    for row in made["configurations"]:
        if row["summary"]:
            speed = row["summary"]["samples_per_second"]
            bars.append(Bar(row["label"], rate_text(speed["median"]), speed["median"], colour(row),
                            row["offload_optimizer"] != "none", (speed["lowest"], speed["highest"])))
        else:
            bars.append(Bar(row["label"], reason(row).split(":")[0]))
    repeats = max((row["summary"]["repeats"] for row in _measured(made)), default=0)
    caption = "Samples a second; longer is better." + (
        f" Median of {repeats} runs; the line spans the lowest and the highest." if repeats > 1 else " One run each.")
    return charts.figure("Speed", caption, bars, "" if made["speed_comparable"] else "not comparable")


def table(headings: Sequence[str], rows: Sequence[tuple[str, str, Optional[Sequence[str]], str]], caption: str) -> str:
    """Rows of (name, about, cells or None, reason); on a phone each row becomes a list of "heading: cell"."""
    head = "".join(f'<th role="columnheader" scope="col">{escape(name)}</th>' for name in headings)
    body = []
    for name, about, figures, why in rows:
        words = f'<span class="about">{escape(about)}</span>' if about else ""
        if figures is None:
            rest = f'<td role="cell" class="reason" colspan="{len(headings) - 1}">{escape(why)}</td>'
        else:
            rest = "".join(f'<td role="cell" data-label="{escape(heading)}">{escape(figure)}</td>'
                           for heading, figure in zip(headings[1:], figures))
        body.append('<tr role="row"><th role="rowheader" scope="row"><span '
                    f'class="label">{escape(name)}</span>{words}</th>{rest}</tr>')
    return (f'<table role="table" aria-label="{escape(caption)}"><thead role="rowgroup"><tr '
            f'role="row">{head}</tr></thead>'
            f'<tbody role="rowgroup">{"".join(body)}</tbody></table>')


def _table(made: dict[str, Any]) -> str:
    rows = [(row["label"], row["about"], cells(made, row), reason(row)) for row in made["configurations"]]
    return f'<section class="card long"><h2>All figures</h2>{table(["", *HEADINGS], rows, "All figures")}</section>'


def _prediction(made: dict[str, Any]) -> str:
    """The split that `debzero plan` predicts, with the measured peak as a mark across it."""
    rows = [row for row in made["configurations"] if row.get("predicted")]
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row["predicted"]["parts"]))
    colours = {name: f"p{number % 8}" for number, name in enumerate(names)}
    bars, lines = [], []
    for row in rows:
        predicted, own = row["predicted"], row["summary"]
        measured, total = own["memory_bytes"] if own else None, predicted["total_bytes"]
        parts = [(colours[name], taken) for name, taken in predicted["parts"].items()]
        bars.append(Bar(row["label"], size_text(total), parts=parts, mark=measured))
        off = f"{total / measured - 1:+.1%}" if measured else "-"
        lines.append((row["label"], "", [*(size_text(predicted["parts"].get(name)) for name in names),
                                           size_text(total), size_text(measured), off], ""))
    caption = "Predicted by debzero plan, before the run. The line across a bar is the measured peak."
    shown = table(["", *names, "predicted", "measured", "off by"], lines, "Predicted and measured memory per rank")
    return (charts.groups("What the memory holds", caption, [("", bars)], [(colours[name], name) for name in names])
            + f'<section class="card"><h2>Predicted and measured</h2>{shown}</section>')


def _article(made: dict[str, Any]) -> str:
    own = {row["stage"]: row["summary"] for row in made["configurations"] if row["offload_optimizer"] == "none"}
    printed = {row["stage"]: row for row in made["article"]["rows"]}
    lines, memory, speed = [], [], []
    for stage, theirs in printed.items():
        ours = own.get(stage)
        steps = ours["steps_per_second"]["median"] if ours else None
        lines.append((theirs["label"], "", [theirs["memory"], size_text(ours["memory_bytes"] if ours else None),
                                            f"{theirs['steps_per_second']:g}", rate_text(steps) if steps else "-"], ""))
        shade = "c0" if stage == "none" else f"c{stage}"
        here = [Bar("here", "not measured")] * 2
        if ours and steps:
            used = ours["memory_bytes"]
            here = [Bar("here", size_text(used), used, shade), Bar("here", rate_text(steps), steps, shade)]
        printed_speed = theirs["steps_per_second"]
        memory.append((theirs["label"],
                       [Bar("article", theirs["memory"], theirs["memory_gb"] * 1e9, "article"), here[0]]))
        speed.append((theirs["label"], [Bar("article", f"{printed_speed:g}", printed_speed, "article"), here[1]]))
    words = made["article"]["about"] + " Here both are defined, below."
    if not made["speed_comparable"]:
        words += " Ranks shared GPUs here, so steps/s are not comparable with anything."
    headings = ["", "article: memory", "here: memory", "article: steps/s", "here: steps/s"]
    return (f'<section class="card"><h2>Beside the article</h2><p>{escape(words)}</p>'
            f'{table(headings, lines, "The article and this bench")}</section>'
            '<div class="grid '
            f'two">{charts.groups("Memory: article and here", "GB in the article, GiB per rank here.", memory)}'
            f'{charts.groups("Steps a second: article and here", "A step here is one optimizer step of the global batch.", speed)}</div>')


def terms(pairs: Sequence[tuple[str, Any]]) -> str:
    shown = [(name, str(value)) for name, value in pairs if value not in (None, "")]
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in shown) + "</dl>"


def _definitions(made: dict[str, Any]) -> str:
    settings = made["settings"]
    how = (f"{settings['warmup']} steps to warm up, then {settings['steps']} measured ones; each run in a fresh "
           "process, and all configurations once before any of them again. All see the same batches in the same order.")
    return f'<section class="card"><h2>What the words mean</h2><p>{escape(how)}</p>{terms(list(made["definitions"].items()))}</section>'


def _hardware(host: dict[str, Any]) -> str:
    pairs = [("host", host["name"]), ("device", host["device"]), ("GPUs", host["gpus"] or "none"),
             ("GPU memory", size_text(host["gpu_memory_bytes"]) if host["gpu_memory_bytes"] else None),
             ("processor", host["processor"]), ("host memory", size_text(host["memory_bytes"]))]
    return f'<section class="card"><h2>Hardware</h2>{terms(pairs)}</section>'


def _software(made: dict[str, Any]) -> str:
    host = made["host"]
    pairs = [("system", host["system"]), ("kernel", host["kernel"]), ("NVIDIA driver", host["driver"]),
             ("CUDA", host["cuda"]), *made["versions"].items()]
    return f'<section class="card"><h2>Software</h2>{terms(pairs)}</section>'


def _again(made: dict[str, Any]) -> str:
    """What it takes to measure the same elsewhere."""
    job = yaml.safe_dump(made["job"], sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)
    return (f'<section class="card long"><h2>Measure it yourself</h2><pre>{escape(made["command"])}</pre>'
            f'<p class="sub">The job, {escape(made["job_file"])}, with every '
            f'key:</p><pre>{escape(job)}</pre></section>')
