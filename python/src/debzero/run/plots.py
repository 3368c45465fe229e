"""The course of a run as a picture: loss, score and speed over the steps."""
from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from debzero.base.files import write_bytes
from debzero.base.text import printable
from debzero.run.exporters import EVALUATION
from debzero.run.records import read_rows

INK, FAINT, GRID = "#22303c", "#75828e", "#e6eaee"
TRAINING, HELD_OUT, SPEED = "#1f6f8b", "#c8553d", "#5a7d3a"
STYLE = {
    "svg.hashsalt": "debzero", "font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": FAINT, "axes.linewidth": 0.8, "axes.axisbelow": True, "axes.grid": True, "grid.color": GRID,
    "grid.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False, "xtick.color": FAINT,
    "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "figure.facecolor": "white",
    "axes.facecolor": "white", "savefig.facecolor": "white", "legend.frameon": False, "legend.fontsize": 8.5,
    "legend.handlelength": 1.6}
MOST = 600  # points in a line: more cannot be told apart, and swell the file

Point = tuple[float, float]


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most MOST points, each the mean of its neighbours."""
    size = -(-len(points) // MOST)
    parts = [points[first : first + size] for first in range(0, len(points), max(size, 1))]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


class Curves(NamedTuple):
    """Points (step, value): the training loss, the held-out loss and score, and the speed in samples/s."""

    loss: list[Point]
    held_out: list[Point]
    scores: list[Point]
    speed: list[Point]


def _curves(metrics: Path, metric: str) -> Curves:
    rows = read_rows(metrics)

    def points(key: str) -> list[Point]:
        return [(row["step"], row[key]) for row in rows if row.get(key) is not None]

    scores = points(EVALUATION + metric) if metric != "loss" else []
    return Curves(points("loss"), points(EVALUATION + "loss"), scores, points("samples_per_second"))


def draw(metrics: Path, metric: str, baseline: Optional[float], folder: Path, title: str) -> bool:
    """Write loss.svg and loss.png into `folder` from the lines of metrics.jsonl; False when there is nothing to show.

    `metric` is the evaluation's score that counts, `baseline` what answering without the text scores in it.
    """
    curves = _curves(metrics, metric)
    if not curves.loss:
        return False
    # matplotlib wants a folder of its own, in places where a service may not write, and would complain.
    os.environ.setdefault("MPLCONFIGDIR",
                          str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "matplotlib"))
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = _figure(curves, metric, baseline, title)
        # The same run gives the same file: no date, and ids that do not depend on chance.
        extras: dict[str, dict[str, Any]] = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 150}}
        for kind, extra in extras.items():
            content = io.BytesIO()
            figure.savefig(content, format=kind, **extra)
            write_bytes(folder / f"loss.{kind}", content.getvalue())
    return True


def _figure(curves: Curves, metric: str, baseline: Optional[float], title: str) -> Any:
    """The loss, the score where it is not the loss, and the speed, one below the other."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 6.0 if curves.scores else 4.6), layout="constrained")
    heights = [2.2, 1.3, 1.0] if curves.scores else [2.2, 1.0]
    panels = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
    panels[0].set_title(printable(title), loc="left", fontsize=12, fontweight="bold", parse_math=False)
    _line(panels[0], thinned(curves.loss), TRAINING, "training")
    _line(panels[0], curves.held_out, HELD_OUT, "held out", dots=True)
    panels[0].set_ylabel("loss")
    panels[0].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2, ncols=2)
    if curves.scores:
        _score_panel(panels[1], curves.scores, metric)
    if baseline is not None and (curves.scores or metric == "loss"):
        _baseline(panels[1 if curves.scores else 0], baseline)
    _line(panels[-1], thinned(curves.speed), SPEED, "speed")
    panels[-1].set_ylabel("samples/s")
    panels[-1].set_ylim(0, 1.15 * max([value for _, value in curves.speed] or [1]) or 1)
    panels[-1].set_xlabel("optimizer step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].set_xlim(0, 1.02 * max(step for step, _ in curves.loss + curves.held_out))
    figure.align_ylabels(panels)
    return figure


def _score_panel(axes: Any, scores: list[Point], metric: str) -> None:
    _line(axes, scores, HELD_OUT, f"held-out {metric}", dots=True)
    axes.set_ylabel(metric)
    axes.annotate(f"{scores[-1][1]:.4g}", scores[-1], xytext=(0, 6), textcoords="offset points", ha="right",
                  fontsize=8.5, color=HELD_OUT)
    axes.margins(y=0.3)


def _baseline(axes: Any, value: float) -> None:
    axes.axhline(value, color=FAINT, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.annotate(f"baseline: {value:.4g}", (0, value), xycoords=("axes fraction", "data"), xytext=(4, 3),
                  textcoords="offset points", fontsize=8.5, color=FAINT)


def _line(axes: Any, points: list[Point], color: str, label: str, dots: bool = False) -> None:
    """With dots where points are few, as a line through one point cannot be seen."""
    if points:
        few = (dots and len(points) <= 50) or len(points) < 3
        marks: dict[str, Any] = {"marker": "o", "markersize": 4} if few else {}
        axes.plot(*zip(*points), color=color, linewidth=1.5, label=label, **marks)
