"""Copies of a run's metrics for other programs: TensorBoard, spreadsheets, Prometheus.

None of them may end a training: one that fails (a full disk, a missing package) is reported once and left out. Their
packages are imported when rank 0 starts to train, and nowhere else.
"""
from __future__ import annotations

import csv
import io
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Optional, Protocol

from debzero.base.environment import environment
from debzero.base.files import write_public, write_text
from debzero.base.text import csv_cell, printable
from debzero.run.records import read_rows

EVALUATION = "eval_"  # before a metric's name, wherever training's own numbers are beside it


def columns() -> list[str]:
    """Of metrics.csv: the same ones in every run."""
    from debzero.model.tasks import SCORES

    return ["time", "step", "total_steps", "epoch", "loss", "learning_rate", "samples_per_second", "tokens_per_second",
            "padding_share", "tflops", "peak_share", "memory_bytes", "skipped_steps", "loss_scale", "eta_seconds",
            *(EVALUATION + name for name in SCORES)]


class Exporter(Protocol):
    """Gets each line of metrics.jsonl."""

    def measured(self, values: dict[str, Any]) -> None:
        """Numbers by name; `memory_bytes` is a list with one for each rank."""

    def close(self) -> None:
        """The run has ended."""


class TensorBoard:
    """Event files in tensorboard/. The file of an interrupted run stays; what it has from `step` on is declared
    void."""

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event, self.summary = Event, Summary
        (folder / "tensorboard").mkdir(exist_ok=True)
        # Its EventFileWriter does the same in a thread, whose errors reach the journal as tracebacks.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self.writer = RecordWriter(open(folder / "tensorboard" / name, "wb"))  # noqa: SIM115 - closed below
        self._add(0, file_version="brain.Event:2")
        self._add(step + 1, session_log=SessionLog(status=SessionLog.START))
        self.writer.flush()

    def _add(self, step: int, **content: Any) -> None:
        self.writer.write(self.event(step=step, wall_time=time.time(), **content).SerializeToString())

    def measured(self, values: dict[str, Any]) -> None:
        scalars = {f"evaluation/{name[len(EVALUATION):]}" if name.startswith(EVALUATION) else f"training/{name}": value
                   for name, value in values.items() if isinstance(value, (int, float))
                   and name not in ("step", "total_steps")}
        scalars.update({f"memory/rank{rank}": value for rank, value in enumerate(values.get("memory_bytes", []))})
        self._add(values["step"], summary=self.summary(
            value=[self.summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]))
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Table:
    """metrics.csv: metrics.jsonl for spreadsheets, with the largest of the ranks' memory. Written anew at each start,
    so that it never holds steps that were undone."""

    def __init__(self, folder: Path) -> None:
        self.file, self.columns = folder / "metrics.csv", columns()
        write_text(self.file, ",".join(self.columns) + "\n" + self._text(read_rows(folder / "metrics.jsonl")))

    def _text(self, rows: list[dict[str, Any]]) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, extrasaction="ignore", lineterminator="\n")
        writer.writerows({name: csv_cell(value) for name, value in
                          {**row, "memory_bytes": max(row.get("memory_bytes") or [], default=None)}.items()}
                         for row in rows)
        return text.getvalue()

    def measured(self, values: dict[str, Any]) -> None:
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(self._text([values]))

    def close(self) -> None:
        """Nothing is open."""


class Prometheus:
    """debzero-<job>.prom in `folder`, for node_exporter's textfile collector: the newest values, replaced as a
    whole."""

    GAUGES = {
        "step": ("step", "Optimizer steps done"), "total_steps": ("steps_total", "Optimizer steps in all"),
        "loss": ("loss", "Mean training loss since the last line"), "learning_rate": ("learning_rate", "Learning rate"),
        "samples_per_second": ("samples_per_second", "Samples a second on all ranks"),
        "tokens_per_second": ("tokens_per_second", "Tokens a second on all ranks, without padding"),
        "padding_share": ("padding_share", "Share of the tokens that are padding"),
        "tflops": ("tflops", "TFLOP/s of one rank"), "peak_share": ("peak_share", "Share of the device's peak"),
        "skipped_steps": ("skipped_steps", "Steps skipped for an overflow"), "loss_scale": ("loss_scale", "Loss scale"),
        "eta_seconds": ("eta_seconds", "Seconds left")}

    def __init__(self, folder: Path, job: str) -> None:
        from prometheus_client import CollectorRegistry, Gauge, generate_latest

        self.job, self.registry, self.text = printable(job), CollectorRegistry(), generate_latest
        self.gauges = {key: Gauge(f"debzero_{name}", text, ["job"], registry=self.registry)
                       for key, (name, text) in self.GAUGES.items()}
        self.memory = Gauge("debzero_memory_bytes", "Peak memory", ["job", "rank"], registry=self.registry)
        self.scores = Gauge("debzero_eval", "Held-out score", ["job", "metric"], registry=self.registry)
        self.file = folder / f"debzero-{job}.prom"

    def measured(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if not isinstance(value, (int, float)):
                continue
            if name.startswith(EVALUATION):
                self.scores.labels(self.job, name[len(EVALUATION):]).set(value)
            elif name in self.gauges:
                self.gauges[name].labels(self.job).set(value)
        for rank, value in enumerate(values.get("memory_bytes", [])):
            self.memory.labels(self.job, rank).set(value)
        write_public(self.file, self.text(self.registry))

    def close(self) -> None:
        """The last values stay: Prometheus may not have read the file since they were written."""


class Exporters:
    """All of them, on rank 0. The run starts from `step`, and metrics.jsonl holds nothing after it."""

    def __init__(self, folder: Path, job: str, step: int, say: Callable[[str], None]) -> None:
        self.say = say
        self.working: dict[str, Exporter] = {}
        makers: dict[str, Callable[[], Exporter]] = {
            "TensorBoard": lambda: TensorBoard(folder, step), "metrics.csv": lambda: Table(folder),
            "Prometheus": lambda: Prometheus(folder, job)}
        shared = environment().textfile_folder
        if shared is not None:
            makers[f"Prometheus in {shared}"] = lambda: Prometheus(shared, job)
        for name, make in makers.items():
            exporter = self._try(name, make)
            if exporter is not None:
                self.working[name] = exporter

    def _try(self, name: str, action: Callable[[], Any]) -> Optional[Any]:
        try:
            return action()
        except Exception as error:  # whatever it is, the training is worth more
            reason = f"the package {error.name} is not installed" if isinstance(error, ModuleNotFoundError) else (
                f"{type(error).__name__}: {error}")
            self.say(f"the run continues without {name}: {reason}")
            self.working.pop(name, None)
            return None

    def measured(self, values: dict[str, Any]) -> None:
        for name, exporter in list(self.working.items()):
            self._try(name, lambda: exporter.measured(values))  # noqa: B023 - called at once

    def close(self) -> None:
        for exporter in self.working.values():
            with suppress(Exception):
                exporter.close()
