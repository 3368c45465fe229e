"""A bench's figures as text: a CSV file, a Markdown table and a table for the terminal; and the sentences that a reader
needs with them."""
from __future__ import annotations

import csv
import io
from typing import Optional

from debzero.base.text import bytes_text, count_text, csv_cell, markdown_text, printable, rate_text
from debzero.bench import latency_page, scaling
from debzero.bench.results import BenchResults, Row

HEADINGS = ("memory per rank", "of plain DDP", "device memory", "host memory", "samples/s", "spread", "steps/s")
COLUMNS = ("configuration", "stage", "offload_optimizer", "offload_param", "tensor", "pipeline",
           "ranks", "repeats", "memory_bytes",
           "device_bytes", "host_bytes", "samples_per_second", "samples_per_second_lowest",
           "samples_per_second_highest", "steps_per_second", "speed_comparable", "reason")


def title(bench: BenchResults) -> str:
    return f"{bench.model} on {bench.host.device}, {count_text(bench.settings.ranks, 'rank')}"


def cells(bench: BenchResults, row: Row) -> Optional[list[str]]:
    """A row's figures in the order of HEADINGS; None where it has none."""
    own = row.summary
    if own is None:
        return None
    share, speed = bench.memory_share(row), own.samples_per_second
    spread = f"{rate_text(speed.lowest)}–{rate_text(speed.highest)}" if own.repeats > 1 else "one run"
    return [bytes_text(own.memory_bytes), "-" if share is None else f"{share:.0%}", bytes_text(own.device_bytes),
            bytes_text(own.host_bytes), rate_text(speed.median), spread, rate_text(own.steps_per_second.median)]


def notes(bench: BenchResults) -> list[str]:
    """What a reader must know before comparing the figures."""
    found: list[str] = []
    if not bench.configurations:
        return found
    ranks, gpus = bench.settings.ranks, bench.host.gpus
    if not bench.speed_comparable:
        found.append(f"{count_text(ranks, 'rank')} shared {count_text(gpus, 'GPU')}: each rank's memory is its own, "
                     "without the second bucket that overlapped communication takes in ZeRO-1 and ZeRO-2; speed is not "
                     "comparable with that of ranks that have a GPU each.")
    if bench.settings.cap_gib:
        found.append(f"Each rank was limited to {bench.settings.cap_gib} GiB" + (
            " of its GPU, as if the GPU were that small." if gpus else "."))
    if ranks == 1:
        offload = " Offload does save." if any(row.offloads for row in bench.configurations) else ""
        found.append("One rank has nothing to shard across: the ZeRO stages save next to nothing here and only show "
                     f"their cost.{offload}")
    if any(row.configuration.divides for row in bench.configurations):
        found.append("The batch is that of the divided model, whose ranks train a copy together. In other rows each "
                     "rank has a copy, with as much of the global batch as that leaves it.")
    if not gpus:
        found.append("There was no GPU: memory is the whole process's, most of it libraries, and speed is the "
                     "processor's.")
    found += scaling.sentences(bench)
    if bench.left_out:
        found.append(bench.left_out)
    for row in bench.configurations:
        if row.summary and row.failed:
            found.append(f"{row.label}: its figures are those of {row.summary.repeats} of {len(row.runs)} runs; then "
                         f"{row.reason}.")
    return found


def as_csv(bench: BenchResults) -> str:
    """A line for each configuration; bytes and rates as they are, for spreadsheets."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for row in bench.configurations:
        line = {"configuration": row.name, **row.configuration.as_dict(), "ranks": bench.settings.ranks,
                "speed_comparable": str(bench.speed_comparable).lower()}
        own = row.summary
        if own:
            speed = own.samples_per_second
            line.update(repeats=own.repeats, memory_bytes=own.memory_bytes, device_bytes=own.device_bytes,
                        host_bytes=own.host_bytes, samples_per_second=round(speed.median, 4),
                        samples_per_second_lowest=round(speed.lowest, 4),
                        samples_per_second_highest=round(speed.highest, 4),
                        steps_per_second=round(own.steps_per_second.median, 5))
        else:
            line["reason"] = printable(row.reason)
        writer.writerow({name: csv_cell(value) for name, value in line.items()})
    return text.getvalue()


def as_markdown(bench: BenchResults) -> str:
    """A table for a README or a ticket."""
    lines = [f"**{markdown_text(title(bench))}**, {bench.batch}, {markdown_text(bench.precision)}", "",
             "| configuration | " + " | ".join(HEADINGS) + " |", "|---|" + "---:|" * len(HEADINGS)]
    for row in bench.configurations:
        figures = cells(bench, row)
        if figures is None:
            lines.append(f"| {row.label} | {markdown_text(row.reason)} |" + " |" * (len(HEADINGS) - 1))
        else:
            lines.append(f"| {row.label} | " + " | ".join(figures) + " |")
    if not bench.configurations:
        lines = [lines[0]]
    lines += ["", *map(markdown_text, notes(bench)), ""] if notes(bench) else [""]
    lines += latency_page.as_markdown(bench).splitlines()
    lines += [markdown_text(f"- {term}: {meaning}") for term, meaning in bench.definitions.items()]
    commands = " and ".join(f"`{printable(command).replace('`', chr(39))}`" for command in bench.command.splitlines())
    return "\n".join([*lines, "", f"Measured with {commands}, {markdown_text(bench.made)}."]) + "\n"


def as_text(bench: BenchResults) -> str:
    """The table for a terminal."""
    figures = [(row.label, cells(bench, row), row.reason) for row in bench.configurations]
    columns = list(zip(HEADINGS, *(cells for _, cells, _ in figures if cells)))
    widths = [max(map(len, column)) for column in columns]
    first = max((len(label) for label, _, _ in figures), default=0)
    lines = [(" " * first, list(HEADINGS), ""), *figures]
    shown = [f"{label:<{first}}  " + ("  ".join(cell.rjust(width) for cell, width in zip(cells, widths))
                                      if cells else reason) for label, cells, reason in lines]
    return "\n".join(printable(line.rstrip()) for line in [title(bench), *shown, *notes(bench)])
