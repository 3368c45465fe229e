"""What rank 0 says while it trains: a line, status.json, metrics.jsonl and systemd's status line."""
from __future__ import annotations

import json
import time
from typing import Any, Optional

from debzero import systemd
from debzero.runstate import Output, now


def duration(seconds: Optional[float]) -> str:
    if seconds is None:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def line(status: dict[str, Any]) -> str:
    """One step's progress as text; also what `debzero status --watch` shows."""
    return (f"step {status['step']}/{status['total_steps']}  epoch {status['epoch']:.2f}  loss {status['loss']:.4f}  "
            f"lr {status['learning_rate']:.2e}  {status['samples_per_second']:.1f} samples/s  ETA {duration(status['eta_seconds'])}")


class Progress:
    """Speaks on rank 0 and is silent elsewhere."""

    def __init__(self, output: Output, speaks: bool) -> None:
        self.output, self.speaks = output, speaks

    def say(self, text: str) -> None:
        if self.speaks:
            print(text, flush=True)

    def state(self, state: str, words: str, **values: Any) -> None:
        """A new phase, with `words` for the status line."""
        if self.speaks:
            self.output.update(state=state, **values)
            systemd.notify(f"STATUS={words}")

    def ready(self) -> None:
        if self.speaks:
            systemd.notify("READY=1")

    def measured(self, **values: Any) -> None:
        """Append one line to metrics.jsonl."""
        if self.speaks:
            with open(self.output.metrics_file, "a", encoding="utf-8") as file:
                file.write(json.dumps({**values, "time": now()}) + "\n")

    def step(self, status) -> None:
        if not self.speaks:
            return
        self.say(line(status))
        self.measured(**status)
        self.state("training", f"step {status['step']}", **status)

    def evaluated(self, step, epoch, metrics):
        self.say(f"eval {step} {metrics}"); self.measured(step=step, epoch=epoch, **{k if k!='loss' else 'eval_loss': v for k,v in metrics.items()})
    def close(self): pass
    def resume(self, step): pass
    def warn(self, t): self.say(t)
    def alive(self):
        if self.speaks: systemd.notify("WATCHDOG=1", "EXTEND_TIMEOUT_USEC=120000000")


class Stopwatch:
    """Seconds spent training, without evaluation and saving."""

    def __init__(self) -> None:
        self.total, self._since = 0.0, 0.0

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> None:
        self.total += time.perf_counter() - self._since

    @property
    def running_total(self) -> float:
        return self.total + time.perf_counter() - self._since
