"""The course of a run as a picture: loss, score and speed over the steps."""
from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from debzero.base.files import read_lines, write_bytes
from debzero.run.exporters import EVALUATION

INK, FAINT, GRID = "#22303c", "#75828e", "#e6eaee"
TRAINING, HELD_OUT, SPEED = "#1f6f8b", "#c8553d", "#5a7d3a"
STYLE = {
    "svg.hashsalt": "debzero", "font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": FAINT, "axes.linewidth": 0.8, "axes.axisbelow": True, "axes.grid": True, "grid.color": GRID,
    "grid.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False, "xtick.color": FAINT,
    "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "figure.facecolor": "white",
    "axes.facecolor": "white", "savefig.facecolor": "white", "legend.frameon": False, "legend.fontsize": 8.5,
    "legend.handlelength": 1.6}
MOST = 600  # points in a line: more would not be seen, but swell the file


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST points, each the mean of its neighbours."""
    size = -(-len(points) // MOST)
    parts = [points[first : first + size] for first in range(0, len(points), max(size, 1))]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def draw(metrics: Path, metric: str, baseline: Optional[float], folder: Path, title: str) -> bool:
    """Write loss.svg and loss.png into `folder` from the lines of metrics.jsonl; False when there is nothing to show.

    `metric` is the evaluation's that counts, `baseline` what a guess without looking scores in it.
    """
    rows = read_lines(metrics)

    def points(key: str) -> list[tuple[float, float]]:
        return [(row["step"], row[key]) for row in rows if row.get(key) is not None]

    loss, speed, held_out = points("loss"), points("samples_per_second"), points(EVALUATION + "loss")
    scores = points(EVALUATION + metric) if metric != "loss" else []
    if not loss:
        return False
    # matplotlib looks for a folder of its own where a service may not write, and would say so.
    os.environ.setdefault("MPLCONFIGDIR",
                          str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "matplotlib"))
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # The same run gives the same file: no date, and ids that do not depend on chance.
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 6.0 if scores else 4.6), layout="constrained")
        heights = [2.2, 1.3, 1.0] if scores else [2.2, 1.0]
        panels = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
        panels[0].set_title(title, loc="left", fontsize=12, fontweight="bold")
        _line(panels[0], thinned(loss), TRAINING, "training")
        _line(panels[0], held_out, HELD_OUT, "held out", dots=True)
        panels[0].set_ylabel("loss")
        panels[0].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2, ncols=2)
        if scores:
            _line(panels[1], scores, HELD_OUT, f"held-out {metric}", dots=True)
            panels[1].set_ylabel(metric)
            panels[1].annotate(f"{scores[-1][1]:.4g}", scores[-1], xytext=(0, 6), textcoords="offset points",
                               ha="right", fontsize=8.5, color=HELD_OUT)
            panels[1].margins(y=0.3)
        if baseline is not None and (scores or metric == "loss"):
            panels[1 if scores else 0].axhline(baseline, color=FAINT, linewidth=1.0, linestyle=(0, (4, 3)))
            panels[1 if scores else 0].annotate(
                f"a guess without looking: {baseline:.4g}", (0, baseline), xycoords=("axes fraction", "data"),
                xytext=(4, 3), textcoords="offset points", fontsize=8.5, color=FAINT)
        _line(panels[-1], thinned(speed), SPEED, "speed")
        panels[-1].set_ylabel("samples/s")
        panels[-1].set_ylim(0, 1.15 * max([value for _, value in speed] or [1]) or 1)
        panels[-1].set_xlabel("optimizer step")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[-1].set_xlim(0, 1.02 * max(step for step, _ in loss + held_out))
        figure.align_ylabels(panels)
        extras: dict[str, dict[str, Any]] = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 150}}
        for kind, extra in extras.items():
            content = io.BytesIO()
            figure.savefig(content, format=kind, **extra)
            write_bytes(folder / f"loss.{kind}", content.getvalue())
    return True


def _line(axes: Any, points: list[tuple[float, float]], color: str, label: str, dots: bool = False) -> None:
    """With dots where points are few, as a line through one point is nothing."""
    if points:
        marks: dict[str, Any] = {"marker": "o",
                                 "markersize": 4} if (dots and len(points) <= 50) or len(points) < 3 else {}
        axes.plot(*zip(*points), color=color, linewidth=1.5, label=label, **marks)
