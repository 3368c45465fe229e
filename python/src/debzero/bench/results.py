"""results.json: what was measured, run by run, and the figures that the tables and the page show."""
from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path
from typing import Any, Optional

from debzero.base.errors import InputError, Problem
from debzero.base.files import read_json
from debzero.base.text import rate_text, size_text
from debzero.measure.run import per_second

FORMAT = 1

# The tutorial that this kit makes real. It says neither what a step is nor how memory was read.
ARTICLE = {
    "about": "The table of the article that this kit began with. It defines neither \"step\" nor how memory was read, "
             "so its figures show a tendency and no common scale.",
    "rows": [
        {"stage": "none", "label": "Baseline", "memory": "32 GB+", "memory_gb": 32, "steps_per_second": 3.2},
        {"stage": 1, "label": "ZeRO-1", "memory": "18 GB", "memory_gb": 18, "steps_per_second": 3.90},
        {"stage": 2, "label": "ZeRO-2", "memory": "11 GB", "memory_gb": 11, "steps_per_second": 4.5},
        {"stage": 3, "label": "ZeRO-3", "memory": "6 GB", "memory_gb": 6, "steps_per_second": 4.2},
    ],
}


def file_of(path: Path) -> Path:
    """The JSON that a file, or a bench's output folder, stands for."""
    return path / "results.json" if path.is_dir() else path


def load(path: Path) -> dict[str, Any]:
    """The results in a file, or in a bench's output folder."""
    file = file_of(path)
    results = read_json(file)
    if results.get("format") != FORMAT:
        raise InputError([Problem(str(file), "file",
                                  "does not exist" if not file.is_file() else "is no results.json of this version",
                                  "give a results.json that `debzero bench` wrote, or its folder")])
    return results


def of_repeats(values: list[float]) -> dict[str, float]:
    """Median and spread of one figure."""
    middle = statistics.median(values)
    return {"median": middle, "lowest": min(values), "highest": max(values),
            "spread": (max(values) - min(values)) / middle if middle else 0.0}


def summarize(runs: list[dict[str, Any]]) -> Optional[dict[str, Any]]:
    """The figures of one configuration from its measured runs; None before the first."""
    measured = [run for run in runs if run["kind"] == "measured"]
    if not measured:
        return None
    ranks = [max(peaks) for peaks in zip(*(run["memory_bytes"] for run in measured))]
    devices = [max(peaks) for peaks in zip(*(run["device_bytes"] for run in measured))]
    return {
        "repeats": len(measured),
        "samples_per_second": of_repeats([per_second(run, "samples") for run in measured]),
        "steps_per_second": of_repeats([per_second(run, "steps") for run in measured]),
        "memory_bytes": max(ranks), "memory_bytes_per_rank": ranks,
        "device_bytes": max(devices, default=None), "device_bytes_per_gpu": devices,
        "host_bytes": max(run["host_bytes"] for run in measured),
    }


def baseline(results: dict[str, Any]) -> Optional[dict[str, Any]]:
    """The figures of plain PyTorch, where they were measured."""
    return next((row["summary"] for row in results["configurations"] if row["name"] == "baseline"), None)


def of_baseline(results: dict[str, Any], row: dict[str, Any]) -> dict[str, Optional[float]]:
    """A row's memory and speed as shares of the baseline's (1: the same)."""
    base, own = baseline(results), row["summary"]
    if base is None or own is None:
        return {"memory": None, "speed": None}
    return {"memory": own["memory_bytes"] / base["memory_bytes"],
            "speed": own["samples_per_second"]["median"] / base["samples_per_second"]["median"]}


def reason(row: dict[str, Any]) -> str:
    """Why a row has no figures, in one line."""
    failed = next((run for run in row["runs"] if run["kind"] != "measured"), None)
    if failed is None:
        return "not measured yet"
    return {"memory": "out of memory", "refused": "refused",
            "time": "timed out"}.get(failed["kind"], "failed") + f": {failed['reason']}"


def as_csv(results: dict[str, Any]) -> str:
    """A line for each configuration; bytes and rates as they are, for spreadsheets."""
    text = io.StringIO()
    columns = ["configuration", "stage", "offload_optimizer", "offload_param", "ranks", "repeats", "memory_bytes",
               "device_bytes", "host_bytes", "samples_per_second", "samples_per_second_lowest",
               "samples_per_second_highest", "steps_per_second", "speed_comparable", "reason"]
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    for row in results["configurations"]:
        line = {"configuration": row["name"],
                **{key: row[key] for key in ("stage", "offload_optimizer", "offload_param")},
                "ranks": results["batch"]["ranks"], "speed_comparable": str(results["speed_comparable"]).lower()}
        own = row["summary"]
        if own:
            speed = own["samples_per_second"]
            line.update({key: own[key] for key in ("repeats", "memory_bytes", "device_bytes", "host_bytes")},
                        samples_per_second=round(speed["median"], 4),
                        samples_per_second_lowest=round(speed["lowest"], 4),
                        samples_per_second_highest=round(speed["highest"], 4),
                        steps_per_second=round(own["steps_per_second"]["median"], 5))
        else:
            line["reason"] = reason(row)
        writer.writerow(line)
    return text.getvalue()


def cells(results: dict[str, Any], row: dict[str, Any]) -> Optional[list[str]]:
    """The figures of a row as text: memory, of the baseline, device, host, samples/s, spread, steps/s. None where it
    has none."""
    own = row["summary"]
    if own is None:
        return None
    shares, speed = of_baseline(results, row), own["samples_per_second"]
    share = "-" if shares["memory"] is None else f"{shares['memory']:.0%}"
    spread = f"{rate_text(speed['lowest'])}–{rate_text(speed['highest'])}" if own["repeats"] > 1 else "one run"
    return [size_text(own["memory_bytes"]), share, size_text(own["device_bytes"]), size_text(own["host_bytes"]),
            rate_text(speed["median"]), spread, rate_text(own["steps_per_second"]["median"])]


HEADINGS = ["memory per rank", "of the baseline", "device memory", "host memory", "samples/s", "spread", "steps/s"]


def title(results: dict[str, Any]) -> str:
    ranks = results["batch"]["ranks"]
    return f"{results['model']} on {results['host']['device']}, {ranks} rank{'s' if ranks > 1 else ''}"


def notes(results: dict[str, Any]) -> list[str]:
    """What a reader must know before comparing the figures."""
    found = []
    batch = results["batch"]
    if not results["speed_comparable"]:
        found.append(f"{batch['ranks']} ranks shared {results['host']['gpus']} "
                     f"GPU{'s' if results['host']['gpus'] > 1 else ''}: each rank's memory is its own, without the "
                     "second bucket that overlapped communication takes in ZeRO-1 and 2; speed is not comparable with "
                     "that of ranks that have a GPU each.")
    if results["settings"]["cap_gib"]:
        found.append(f"Each rank could take {results['settings']['cap_gib']} GiB of its GPU and no more, as if it "
                     "were that small.")
    if batch["ranks"] == 1:
        found.append("With one rank there is nobody to share with: ZeRO's stages can save next to nothing here, they "
                     "show their cost. Offload does save.")
    if not results["host"]["gpus"]:
        found.append("There was no GPU: memory is the whole process's, most of it libraries, and speed is the "
                     "processor's.")
    if results.get("left_out"):
        found.append(results["left_out"])
    for row in results["configurations"]:
        if row["summary"] and any(run["kind"] != "measured" for run in row["runs"]):
            good, all_runs = row["summary"]["repeats"], len(row["runs"])
            found.append(f"{row['label']}: its figures are those of {good} of {all_runs} runs; then {reason(row)}.")
    return found


def as_markdown(results: dict[str, Any]) -> str:
    """A table for a README or a ticket."""
    lines = [f"**{title(results)}**, {results['batch']['text']}, {results['precision']}", ""]
    lines += ["| configuration | " + " | ".join(HEADINGS) + " |", "|---|" + "---:|" * len(HEADINGS)]
    for row in results["configurations"]:
        found = cells(results, row)
        if found is None:
            lines.append(f"| {row['label']} | {reason(row).replace('|', '/')} |" + " |" * (len(HEADINGS) - 1))
        else:
            lines.append(f"| {row['label']} | " + " | ".join(found) + " |")
    lines += ["", *notes(results), ""] if notes(results) else [""]
    lines += [f"- {word}: {meaning}" for word, meaning in results["definitions"].items()]
    commands = " and ".join(f"`{command}`" for command in results["command"].splitlines())
    return "\n".join([*lines, "", f"Made with {commands}, {results['made']}."]) + "\n"


def as_text(results: dict[str, Any]) -> str:
    """The table for a terminal."""
    rows = [["", *HEADINGS]]
    others = {}
    for row in results["configurations"]:
        found = cells(results, row)
        if found is None:
            others[len(rows)] = reason(row)
        rows.append([row["label"], *(found or [""] * len(HEADINGS))])
    widths = [max(len(line[column]) for line in rows) for column in range(len(rows[0]))]
    lines = []
    for number, line in enumerate(rows):
        figures = others.get(number) or "  ".join(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))
        lines.append(f"{line[0].ljust(widths[0])}  {figures}".rstrip())
    return "\n".join([title(results), *lines, *notes(results)])
