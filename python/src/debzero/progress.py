"""What rank 0 says while it trains: a line, status.json, metrics.jsonl, systemd's status line, and whoever watches."""
from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Optional

from debzero import systemd
from debzero.files import read_json
from debzero.runstate import Output, now
from debzero.watch import EVALUATION, Watchers

STOP_PATIENCE = 120  # seconds that systemd gives a stopping unit after each sign of life


def duration(seconds: Optional[float]) -> str:
    if seconds is None:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def line(status: dict[str, Any]) -> str:
    """One step's progress as text; also what `debzero status --watch` shows."""
    parts = [f"step {status['step']}/{status['total_steps']}", f"epoch {status['epoch']:.2f}", f"loss {status['loss']:.4f}",
             f"lr {status['learning_rate']:.2e}", f"{status['samples_per_second']:.1f} samples/s"]
    if status.get("tokens_per_second"):
        parts.append(f"{status['tokens_per_second']:.0f} tokens/s")
    if status.get("peak_share"):
        parts.append(f"{status['tflops']:.1f} TFLOP/s ({status['peak_share']:.0%} of peak)")
    if status.get("memory_bytes"):
        parts.append(f"{max(status['memory_bytes']) / 2**30:.2f} GiB")
    if status.get("skipped_steps"):
        parts.append(f"{status['skipped_steps']} skipped")
    return "  ".join([*parts, f"ETA {duration(status['eta_seconds'])}"])


class Progress:
    """Speaks on rank 0 and is silent elsewhere."""

    def __init__(self, output: Output, speaks: bool) -> None:
        self.output, self.speaks, self.lived = output, speaks, 0.0
        self.watchers: Optional[Watchers] = None

    def say(self, text: str) -> None:
        if self.speaks:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """Something that the run survives and somebody should know."""
        if self.speaks:
            self.say(f"warning: {text}")
            self.output.update(warning=text)

    def state(self, state: str, words: str, **values: Any) -> None:
        """A new phase, with `words` for the status line."""
        if self.speaks:
            self.output.update(state=state, **values)
            systemd.notify(f"STATUS={words}")

    def resume(self, step: int) -> None:
        """Training is about to go on from `step`: whoever watches is called."""
        if self.speaks:
            self.output.cut_metrics(step)
            job = Path(str(read_json(self.output.status_file).get("job", ""))).stem
            self.watchers = Watchers(self.output.folder, job, step, self.say)

    def ready(self) -> None:
        if self.speaks:
            systemd.notify("READY=1")

    def alive(self) -> None:
        """Feed systemd's watchdog; while the unit stops, ask for more time."""
        if self.speaks and time.monotonic() - self.lived > 1:
            self.lived = time.monotonic()
            systemd.notify("WATCHDOG=1", f"EXTEND_TIMEOUT_USEC={STOP_PATIENCE * 1_000_000}")

    def step(self, values: dict[str, Any]) -> None:
        """What was measured since the last time (see Run._say for the keys)."""
        if self.speaks:
            self.say(line(values))
            self._measured(values)
            self.state("training", f"step {values['step']}/{values['total_steps']}, loss {values['loss']:.4f}, "
                       f"ETA {duration(values['eta_seconds'])}", **values)

    def evaluated(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        if self.speaks:
            self.say(f"step {step}  held-out " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
            self._measured({"step": step, "epoch": round(epoch, 4), **{EVALUATION + name: value for name, value in metrics.items()}})

    def _measured(self, values: dict[str, Any]) -> None:
        with open(self.output.metrics_file, "a", encoding="utf-8") as file:
            file.write(json.dumps({**values, "time": now()}) + "\n")
        if self.watchers:
            self.watchers.measured(values)

    def close(self) -> None:
        if self.watchers:
            self.watchers.close()
