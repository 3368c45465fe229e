"""The tables and the page of gpus.py's results."""
from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

import common

from debzero.base.files import read_json, write_text
from debzero.bench import charts, markup

MODELS = {"bert-large-uncased": "BERT-Large, 128 tokens", "gpt2-medium": "GPT-2 Medium, 512 tokens",
          "gpt2-xl": "GPT-2 XL, 512 tokens"}
NAMES = {"none": "debzero, plain DDP", "zero1": "debzero, ZeRO-1", "zero2": "debzero, ZeRO-2",
         "zero3": "debzero, ZeRO-3", "zero1-speed": "debzero, ZeRO-1, favour: speed",
         "zero2-speed": "debzero, ZeRO-2, favour: speed", "zero3-speed": "debzero, ZeRO-3, favour: speed",
         "native1": "debzero, ZeRO-1, native", "native2": "debzero, ZeRO-2, native",
         "native3": "debzero, ZeRO-3, native", "pipeline2": "debzero, pipeline of 2",
         "tensor2": "debzero, tensor parallel 2", "ddp": "compiled DDP loop", "fsdp2": "FSDP2 loop, compiled layers",
         "trainer": "transformers' Trainer", "trainer2": "Trainer + DeepSpeed ZeRO-2",
         "trainer3": "Trainer + DeepSpeed ZeRO-3"}
COLUMNS = ["", "samples/s", "lowest to highest", "x one GPU", "of peak", "GiB a rank"]
NOTE = ("Speed is the median of all windows of all runs, in samples/s of all ranks together. \"x one GPU\" is that "
        "over debzero's plain DDP on one GPU with the same micro-batch. \"Of peak\" counts padding as work and is the "
        "share of the GPU's dense bf16 peak. Memory is the highest rank's peak in torch's allocator.")


class Line(NamedTuple):
    """A row of a table: a contestant, its figures, or why it has none."""

    contestant: str
    row: dict[str, Any]
    one_gpu: Optional[float]  # samples/s

    @property
    def name(self) -> str:
        return NAMES[self.contestant]

    @property
    def figures(self) -> Optional[list[str]]:
        if "runs" not in self.row:
            return None
        windows, shares = _windows(self.row), [run["peak_share"] for run in self.row["runs"]]
        peak = max(max(run["memory_bytes"]) for run in self.row["runs"])
        return [f"{speed(self.row):.1f}", f"{min(windows):.1f} to {max(windows):.1f}",
                f"{speed(self.row) / self.one_gpu:.2f}" if self.one_gpu else "-",
                f"{statistics.median(shares):.1%}" if None not in shares else "-", f"{peak / 2**30:.2f}"]

    @property
    def reason(self) -> str:
        return str(self.row.get("left_out") or (self.row["failed"].splitlines() or ["failed"])[-1])[:200]


class Group(NamedTuple):
    """A table: one model, one way of padding, one number of ranks."""

    title: str
    lines: list[Line]


def median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def _windows(row: dict[str, Any]) -> list[float]:
    return [window for run in row["runs"] for window in run["windows"]]


def speed(row: dict[str, Any]) -> float:
    """The median of all windows of all runs, in samples/s."""
    return median(_windows(row))


def groups(results: dict[str, Any]) -> Iterator[Group]:
    """In the order of the models, of the paddings, of the ranks."""
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for name, row in results["cells"].items():
        ranks, model, padding, contestant = name.split("/")
        found.setdefault((model, padding, int(ranks)), {})[contestant] = row
    models, paddings = list(MODELS), ["padded", "bucketed"]
    for model, padding, ranks in sorted(found, key=lambda key: (models.index(key[0]), paddings.index(key[1]), key[2])):
        row = found.get((model, padding, 1), {}).get("none", {})
        one = speed(row) if "runs" in row else None
        yield Group(f"{MODELS[model]}, {padding}, {ranks} GPU{'s' if ranks > 1 else ''}",
                    [Line(contestant, found[model, padding, ranks][contestant], one) for contestant in NAMES
                     if contestant in found[model, padding, ranks]])


def text(results: dict[str, Any]) -> str:
    """For the terminal."""
    tables = []
    for group in groups(results):
        rows: list[Sequence[object]] = [[group.title, *COLUMNS[1:]]]
        rows += [[line.name, *(line.figures or ["failed" if "failed" in line.row else "left out", "", "", "", ""])]
                 for line in group.lines]
        tables.append(common.table(rows))
    return "\n\n".join(tables)


def facts(results: dict[str, Any]) -> list[tuple[str, object]]:
    known = results["facts"]
    return [("GPU", known["gpu"]), ("GPUs", known["gpus"]), ("Processor", known["host"]),
            *((name, version) for name, version in known["versions"].items())]


def as_markdown(results: dict[str, Any]) -> str:
    parts = ["# Several GPUs", ", ".join(f"{name} {value}" for name, value in facts(results) if value), NOTE]
    for group in groups(results):
        rows = [[line.name, *(line.figures or [line.reason.replace("|", "/"), "", "", "", ""])] for line in group.lines]
        parts += [f"## {group.title}", "\n".join("| " + " | ".join(row) + " |" for row in (
            ["program", *COLUMNS[1:]], ["---"] * len(COLUMNS), *rows))]
    return "\n\n".join(parts) + "\n"


def as_html(results: dict[str, Any]) -> str:
    body = "<header><h1>Several GPUs</h1></header>" + markup.notes(
        [NOTE, *(["A rehearsal on CPU ranks: its numbers mean nothing."] if results["facts"]["quick"] else [])])
    for group in groups(results):
        bars = [charts.Bar(line.name, line.figures[0] if line.figures else line.reason,
                           speed(line.row) if line.figures else None,
                           "c1" if line.name.startswith("debzero") else "c0") for line in group.lines]
        body += charts.figure(group.title, "samples/s of all ranks together", bars)
        body += markup.section(f"Figures: {group.title}", markup.table(
            COLUMNS, [(line.name, "", line.figures, line.reason if not line.figures else "") for line in group.lines],
            group.title), long=True)
    return markup.shell("Several GPUs", body + markup.section("Host", markup.terms(facts(results))),
                        "make bench-gpus")


def write(file: Path) -> list[Path]:
    """The pages beside the JSON."""
    results, made = read_json(file), [file.with_suffix(".html"), file.with_suffix(".md")]
    for path, content in zip(made, (as_html(results), as_markdown(results))):
        write_text(path, content)
    return made
