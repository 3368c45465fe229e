"""How rank 0 reports while it trains: a line on stdout, status.json, metrics.jsonl, systemd's status line, and the
exporters."""
from __future__ import annotations

import errno
import json
import math
import os
import time
from pathlib import Path
from typing import Any, Callable, Optional

from debzero.base import systemd
from debzero.base.text import computing_text, duration_text, memory_text, printable_lines
from debzero.run.exporters import EVALUATION, Exporters
from debzero.run.folder import RunFolder, now
from debzero.run.records import Metrics

STOP_PATIENCE = 600_000_000  # microseconds, where the unit has no watchdog
PAUSE = 1.0  # seconds between two status.json, each of which waits for the disk


# What a line leaves out first where the terminal is narrow.
EXPENDABLE = ("tokens_per_second", "memory_bytes", "tflops", "learning_rate", "epoch", "samples_per_second")


def line(values: Metrics, width: Optional[int] = None) -> str:
    """One step's progress as text of at most `width` columns. Every number but the step may be missing."""
    parts = _parts(values)
    for name in EXPENDABLE:
        if width is None or len("  ".join(parts.values())) <= width:
            break
        parts.pop(name, None)
    return "  ".join(parts.values())[:width]


def _parts(values: Metrics) -> dict[str, str]:
    """The parts of a progress line by the names of their values."""
    formats: dict[str, tuple[Callable[[Any], str], bool]] = {  # and whether 0 is worth showing
        "epoch": ("epoch {:.2f}".format, True), "loss": ("loss {:.4f}".format, True),
        "learning_rate": ("lr {:.2e}".format, True), "samples_per_second": ("{:.1f} samples/s".format, True),
        "tokens_per_second": ("{:.0f} tokens/s".format, False),
        "tflops": (lambda value: computing_text(value, values.peak_share), False),
        "memory_bytes": (memory_text, False), "skipped_steps": ("{} skipped".format, False)}
    shown = {name: text(getattr(values, name)) for name, (text, zero) in formats.items()
             if getattr(values, name) or (zero and getattr(values, name) is not None)}
    return {"step": f"step {values.step}/{values.total_steps or '?'}", **shown,
            "eta_seconds": f"ETA {duration_text(values.eta_seconds)}"}


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinite numbers."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()}


class Progress:
    """Reports on rank 0 and is silent elsewhere. A full disk ends no training here: only a checkpoint must be written,
    and it raises its own errors."""

    def __init__(self, folder: RunFolder, speaks: bool) -> None:
        self.folder, self.speaks = folder, speaks
        self.notified = self.written = 0.0  # seconds (monotonic): systemd's watchdog, status.json
        self.exporters: Optional[Exporters] = None
        self.pending: dict[str, Any] = {}   # for status.json
        self.lines: list[str] = []          # for metrics.jsonl
        self.complained = False

    def say(self, text: str) -> None:
        if self.speaks:
            print(printable_lines(text), flush=True)

    def warn(self, text: str) -> None:
        """Something that the run survives and somebody should know."""
        if self.speaks:
            self.say(f"warning: {text}")
            self._update({"warning": text})

    def state(self, state: str, text: str, **values: object) -> None:
        """A new state, with `text` for systemd's status line and what else changes in status.json."""
        if self.speaks:
            self._update({"state": state, **values})
            systemd.notify(f"STATUS={text}")

    def resume(self, step: int) -> None:
        """Training is about to start from `step`: begin to export."""
        if self.speaks:
            self._write(lambda: self.folder.cut_metrics(step))
            status = self.folder.written_status()
            self.exporters = Exporters(self.folder.folder, Path(status.job if status else "").stem, step, self.say)

    def ready(self) -> None:
        if self.speaks:
            systemd.notify("READY=1")

    def alive(self) -> None:
        """Feed systemd's watchdog; while the unit stops, ask for more time."""
        if self.speaks and time.monotonic() - self.notified > 1:
            self.notified = time.monotonic()
            # While the unit stops, the next notification may take as long as between two steps.
            systemd.notify("WATCHDOG=1", f"EXTEND_TIMEOUT_USEC={os.environ.get('WATCHDOG_USEC', STOP_PATIENCE)}")

    def step(self, metrics: Metrics) -> None:
        """What was measured since the last time."""
        if self.speaks:
            self.say(line(metrics))
            values = metrics.as_json()
            self._measured(values)
            self._update({"state": "training", **values}, lazily=metrics.step != metrics.total_steps)
            systemd.notify(f"STATUS=step {metrics.step}/{metrics.total_steps}, loss {metrics.loss:.4f}, "
                           f"ETA {duration_text(metrics.eta_seconds)}")

    def evaluated(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        """The scores of an evaluation after `step`."""
        if self.speaks:
            self.say(f"step {step}  held-out " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
            self._measured({"step": step, "epoch": round(epoch, 4),
                            **{EVALUATION + name: value for name, value in metrics.items()}})

    def close(self) -> None:
        """Write what is pending. Not the state: how the run ended is written elsewhere, perhaps already."""
        self.pending.pop("state", None)
        if self.pending:
            self._update({})
        if self.exporters:
            self.exporters.close()

    def _measured(self, values: dict[str, Any]) -> None:
        values = {**_finite(values), "time": now()}
        self.lines.append(json.dumps(values) + "\n")
        self._write(self._append)
        if self.exporters:
            self.exporters.measured(values)

    def _append(self) -> None:
        """Write all lines or none, as half a line would spoil the next one. Where there is no room they wait for the
        next line."""
        text = "".join(self.lines).encode()
        with open(self.folder.metrics_file, "ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if file.write(text) != len(text):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder.metrics_file))
        self.lines.clear()

    def _update(self, values: dict[str, Any], lazily: bool = False) -> None:
        """Change status.json. `lazily`: where it was just written, together with the next change."""
        self.pending.update(_finite(values))
        if lazily and time.monotonic() - self.written < PAUSE:
            return
        self.written = time.monotonic()
        if self._write(lambda: self.folder.update(**self.pending)):
            self.pending = {}

    def _write(self, action: Callable[[], None]) -> bool:
        """Whether it worked. The first failure is reported."""
        try:
            action()
        except OSError as error:
            if not self.complained:
                self.say(f"warning: the run's progress cannot be written down; the run continues without it: {error}")
            self.complained = True
            return False
        return True
