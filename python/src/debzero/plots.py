"""The course of a run as a picture: loss and speed over the steps, with what evaluation found."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from debzero.watch import EVALUATION

INK, LINE, MARK, GRID = "#22303c", "#1f6f8b", "#c8553d", "#e3e7ea"


def draw(metrics: Path, metric: str, folder: Path, title: str) -> None:
    """Write loss.svg and loss.png into `folder` from the lines of metrics.jsonl; `metric` is the evaluation's that is shown."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    trained = [row for row in rows if "loss" in row]
    evaluated = [row for row in rows if EVALUATION + metric in row]
    # The same run gives the same file: no date, and ids that do not depend on chance.
    with matplotlib.rc_context({"svg.hashsalt": "debzero", "font.family": "DejaVu Sans", "text.color": INK, "axes.edgecolor": GRID,
                                "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "font.size": 9}):
        figure = Figure(figsize=(7.2, 4.8), layout="constrained")
        FigureCanvasAgg(figure)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        dots: dict[str, Any] = {"marker": "o", "markersize": 3} if len(trained) < 3 else {}
        above.plot([r["step"] for r in trained], [r["loss"] for r in trained], color=LINE, linewidth=1.4, label="training loss", **dots)
        above.set_ylabel("training loss")
        above.set_title(title, loc="left", fontsize=11, fontweight="bold")
        if evaluated:
            scores = above.twinx()
            scores.plot([r["step"] for r in evaluated], [r[EVALUATION + metric] for r in evaluated], color=MARK, linewidth=1.0,
                        linestyle="--", marker="o", markersize=4, label=f"held-out {metric}")
            scores.set_ylabel(f"held-out {metric}", color=MARK)
            scores.tick_params(axis="y", colors=MARK)
            scores.spines[:].set_visible(False)
        below.plot([r["step"] for r in trained], [r["samples_per_second"] for r in trained], color=LINE, linewidth=1.2, **dots)
        below.set_ylabel("samples/s")
        below.set_xlabel("optimizer step")
        below.set_ylim(bottom=0)
        for axes in (above, below):
            axes.grid(color=GRID, linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
        for kind, extra in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 150})):
            figure.savefig(folder / f"loss.{kind}", format=kind, **extra)
