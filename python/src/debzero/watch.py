"""For whom a run is written down besides its own files: TensorBoard, a spreadsheet, Prometheus.

None of them may end a training: one that fails (a full disk, a missing package) is left out, and said so once.
"""
from __future__ import annotations

import csv
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Optional

from debzero.files import write_text

COLUMNS = ("step", "total_steps", "epoch", "loss", "learning_rate", "samples_per_second", "tokens_per_second", "padding_share", "tflops",
           "peak_share", "memory_bytes", "skipped_steps", "loss_scale", "eta_seconds")
EVALUATION = "eval_"  # before a metric's name, wherever training's own numbers are beside it


class TensorBoard:
    """Event files in tensorboard/; what an interrupted run wrote after its checkpoint is marked as void."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def measured(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, (int, float)) and name not in ("step", "total_steps", "epoch"):
                group = "evaluation" if name.startswith(EVALUATION) else "training"
                self.writer.add_scalar(f"{group}/{name.replace(EVALUATION, '', 1)}", value, values["step"])
        for rank, value in enumerate(values.get("memory_bytes", [])):
            self.writer.add_scalar(f"memory/rank{rank}", value, values["step"])
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Table:
    """metrics.csv: metrics.jsonl as a table, made anew from it at each start, so that it never holds what was undone."""

    def __init__(self, folder: Path, step: int) -> None:
        self.file, lines = folder / "metrics.csv", folder / "metrics.jsonl"
        self.names: list[str] = list(COLUMNS)
        rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.is_file() else []
        for row in rows:
            self.names += [name for name in row if name not in self.names and name != "time"]
        self._write(rows)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        import io

        text = io.StringIO()
        writer = csv.DictWriter(text, self.names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(map(self._flat, rows))
        write_text(self.file, text.getvalue())

    @staticmethod
    def _flat(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "memory_bytes": " ".join(map(str, row.get("memory_bytes") or []))}

    def measured(self, values: dict[str, Any]) -> None:
        new = [name for name in values if name not in self.names]
        if new:  # the first evaluation brings its metrics
            self.names += new
            with open(self.file, newline="", encoding="utf-8") as file:
                rows: list[dict[str, Any]] = [{**row, "memory_bytes": (row["memory_bytes"] or "").split()} for row in csv.DictReader(file)]
            self._write([*rows, values])
            return
        with open(self.file, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.names, extrasaction="ignore").writerow(self._flat(values))

    def close(self) -> None:
        """Nothing is open."""


class Prometheus:
    """debzero-<job>.prom for node_exporter's textfile collector, in the output folder and in $DEBZERO_TEXTFILE_DIR."""

    def __init__(self, folder: Path, job: str) -> None:
        from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

        self.job, self.registry, self.write = job, CollectorRegistry(), write_to_textfile
        self.gauges = {
            name: Gauge(f"debzero_{name}", text, ["job"], registry=self.registry) for name, text in (
                ("step", "Optimizer steps done"), ("total_steps", "Optimizer steps in all"),
                ("loss", "Mean training loss since the last line"),
                ("learning_rate", "Learning rate"), ("samples_per_second", "Samples a second on all ranks"),
                ("tokens_per_second", "Tokens a second on all ranks, without padding"), ("tflops", "TFLOP/s of one rank"),
                ("peak_share", "Share of the device's peak"), ("skipped_steps", "Steps skipped for an overflow"),
                ("loss_scale", "Loss scale"), ("eta_seconds", "Seconds left"))}
        self.memory = Gauge("debzero_memory_bytes", "Peak memory", ["job", "rank"], registry=self.registry)
        self.scores = Gauge("debzero_eval", "Held-out score", ["job", "metric"], registry=self.registry)
        folders = [folder, *map(Path, filter(None, [os.environ.get("DEBZERO_TEXTFILE_DIR")]))]
        self.files = [path / f"debzero-{job}.prom" for path in folders]

    def measured(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if name in self.gauges and isinstance(value, (int, float)):
                self.gauges[name].labels(self.job).set(value)
            elif name.startswith(EVALUATION):
                self.scores.labels(self.job, name.replace(EVALUATION, "", 1)).set(value)
        for rank, value in enumerate(values.get("memory_bytes", [])):
            self.memory.labels(self.job, rank).set(value)
        for file in self.files:
            self.write(str(file), self.registry)

    def close(self) -> None:
        """The last values stay."""


class Watchers:
    """All of them; made on rank 0, where the run goes on from `step`."""

    def __init__(self, folder: Path, job: str, step: int, say: Callable[[str], None]) -> None:
        self.say = say
        self.working: dict[str, Any] = {}
        for name, make in (("TensorBoard", lambda: TensorBoard(folder, step)), ("metrics.csv", lambda: Table(folder, step)),
                           ("Prometheus", lambda: Prometheus(folder, job))):
            made = self._try(name, make)
            if made is not None:
                self.working[name] = made

    def _try(self, name: str, action: Callable[[], Any]) -> Optional[Any]:
        try:
            return action()
        except Exception as error:  # whatever it is, the training is worth more
            self.say(f"{name} is left out: {type(error).__name__}: {error}")
            self.working.pop(name, None)
            return None

    def measured(self, values: dict[str, Any]) -> None:
        for name, watcher in list(self.working.items()):
            self._try(name, lambda: watcher.measured(values))  # noqa: B023 - called at once

    def close(self) -> None:
        for watcher in self.working.values():
            with suppress(Exception):
                watcher.close()
