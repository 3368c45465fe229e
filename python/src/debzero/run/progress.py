"""What rank 0 says while it trains: a line, status.json, metrics.jsonl, systemd's status line, and whoever watches."""
from __future__ import annotations

import errno
import json
import math
import os
import time
from pathlib import Path
from typing import Any, Callable, Optional

from debzero.base import systemd
from debzero.base.files import read_json
from debzero.base.text import computing_text, duration_text, memory_text
from debzero.run.exporters import EVALUATION, Watchers
from debzero.run.folder import Output, now

STOP_PATIENCE = 600_000_000  # microseconds, where the unit has no watchdog
PAUSE = 1.0  # seconds between two status.json, each of which waits for the disk


def line(status: dict[str, Any]) -> str:
    """One step's progress as text; also what `debzero status --watch` shows. Every number but the step may be
    missing."""
    def shown(key: str, text: Callable[[Any], str], hide: tuple[Any, ...] = (None,)) -> list[str]:
        value = status.get(key)
        return [] if value in hide else [text(value)]

    return "  ".join([
        f"step {status['step']}/{status.get('total_steps') or '?'}", *shown("epoch", "epoch {:.2f}".format),
        *shown("loss", "loss {:.4f}".format), *shown("learning_rate", "lr {:.2e}".format),
        *shown("samples_per_second", "{:.1f} samples/s".format),
        *shown("tokens_per_second", "{:.0f} tokens/s".format, (None, 0)),
        *shown("tflops", lambda value: computing_text(value, status.get("peak_share")), (None, 0)),
        *shown("memory_bytes", memory_text, (None, [])), *shown("skipped_steps", "{} skipped".format, (None, 0)),
        f"ETA {duration_text(status.get('eta_seconds'))}"])


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinite numbers."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()}


class Progress:
    """Speaks on rank 0 and is silent elsewhere. A disk on which it cannot write ends no training: what must be on the disk, a
    checkpoint, complains for itself."""

    def __init__(self, output: Output, speaks: bool) -> None:
        self.output, self.speaks, self.lived, self.written = output, speaks, 0.0, 0.0
        self.watchers: Optional[Watchers] = None
        self.pending: dict[str, Any] = {}   # for status.json
        self.lines: list[str] = []          # for metrics.jsonl
        self.complained = False

    def say(self, text: str) -> None:
        if self.speaks:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """Something that the run survives and somebody should know."""
        if self.speaks:
            self.say(f"warning: {text}")
            self._update({"warning": text})

    def state(self, state: str, words: str, **values: Any) -> None:
        """A new phase, with `words` for the status line."""
        if self.speaks:
            self._update({"state": state, **values})
            systemd.notify(f"STATUS={words}")

    def resume(self, step: int) -> None:
        """Training is about to go on from `step`: whoever watches is called."""
        if self.speaks:
            self._write(lambda: self.output.cut_metrics(step))
            job = Path(str(read_json(self.output.status_file).get("job", ""))).stem
            self.watchers = Watchers(self.output.folder, job, step, self.say)

    def ready(self) -> None:
        if self.speaks:
            systemd.notify("READY=1")

    def alive(self) -> None:
        """Feed systemd's watchdog; while the unit stops, ask for more time."""
        if self.speaks and time.monotonic() - self.lived > 1:
            self.lived = time.monotonic()
            # A stop has as much time until the next sign of life as a step has.
            systemd.notify("WATCHDOG=1", f"EXTEND_TIMEOUT_USEC={os.environ.get('WATCHDOG_USEC', STOP_PATIENCE)}")

    def step(self, values: dict[str, Any]) -> None:
        """What was measured since the last time (see Run._say for the keys)."""
        if self.speaks:
            self.say(line(values))
            self._measured(values)
            self._update({"state": "training", **values}, lazily=values["step"] != values["total_steps"])
            systemd.notify(f"STATUS=step {values['step']}/{values['total_steps']}, loss {values['loss']:.4f}, "
                           f"ETA {duration_text(values['eta_seconds'])}")

    def evaluated(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        if self.speaks:
            self.say(f"step {step}  held-out " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
            self._measured({"step": step, "epoch": round(epoch, 4),
                            **{EVALUATION + name: value for name, value in metrics.items()}})

    def close(self) -> None:
        self.pending.pop("state", None)  # how it ended is another's to say, who may have said it
        if self.pending:
            self._update({})
        if self.watchers:
            self.watchers.close()

    def _measured(self, values: dict[str, Any]) -> None:
        values = {**_finite(values), "time": now()}
        self.lines.append(json.dumps(values) + "\n")
        self._write(self._append)
        if self.watchers:
            self.watchers.measured(values)

    def _append(self) -> None:
        """All lines or none: half a line would spoil the next one. What found no room is tried again with the next
        line."""
        text = "".join(self.lines).encode()
        with open(self.output.metrics_file, "ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if file.write(text) != len(text):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.output.metrics_file))
        self.lines.clear()

    def _update(self, values: dict[str, Any], lazily: bool = False) -> None:
        """status.json; `lazily`: with the next update, when the last was a moment ago."""
        self.pending.update(_finite(values))
        if lazily and time.monotonic() - self.written < PAUSE:
            return
        self.written = time.monotonic()
        if self._write(lambda: self.output.update(**self.pending)):
            self.pending = {}

    def _write(self, action: Callable[[], None]) -> bool:
        """Whether it worked. The first time that it does not is said."""
        try:
            action()
        except OSError as error:
            if not self.complained:
                self.say(f"warning: the run's progress cannot be written down, and the run goes on without: {error}")
            self.complained = True
            return False
        return True
