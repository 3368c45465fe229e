"""The latency and the throughput of a bench: its section of the page, its Markdown and its table for the terminal."""
from __future__ import annotations

from debzero.base.text import html_text, markdown_text, printable, rate_text
from debzero.bench import article, charts
from debzero.bench.charts import Bar
from debzero.bench.markup import TableRow, section, table
from debzero.bench.results import BenchResults, Inference, Timing

HEADINGS = ("p50", "p95", "p99", "rows/s", "of torch fp32", "batches")
ABOUT = ("The time from a batch's tokens to its answers, of the run's held-out samples, each batch padded to its own "
         "longest; without reading and tokenising texts. All engines see the same batches, in turns, after a warm-up.")
# Their makers' figures, at 128 tokens: (what, rows of a batch, milliseconds). NVIDIA's are of TensorRT 8.5's own demo,
# which has plugins in place of operators; those of onnxruntime are in the README of its tools for Transformers.
OF_LARGE = (("TensorRT 8.5, fp16", 1, 1.64), ("TensorRT 8.5, fp16", 32, 13.85), ("TensorRT 8.5, int8", 1, 1.25),
            ("TensorRT 8.5, int8", 32, 7.09))
OF_BASE = (("onnxruntime 1.4, fp32", 1, 3.11), ("onnxruntime 1.4, fp16", 1, 1.45), ("onnxruntime 1.4, fp32", 4, 9.13),
           ("onnxruntime 1.4, fp16", 4, 2.66))


def name_of(timing: Timing) -> str:
    return f"{timing.engine} {timing.precision}"


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def cells(inference: Inference, timing: Timing) -> list[str]:
    """The figures in the order of HEADINGS."""
    share = inference.speed_share(timing)
    return [*map(milliseconds, (timing.p50_seconds, timing.p95_seconds, timing.p99_seconds)),
            rate_text(timing.rows_per_second), "-" if share is None else f"{share:.2f}x", str(timing.batches)]


def about(inference: Inference) -> str:
    written = f" Each row writes {inference.writes} tokens." if inference.writes else ""
    versions = ", ".join(f"{name} {version}" for name, version in inference.versions.items())
    return (f"{ABOUT} {inference.tokens:.0f} tokens a batch on average, on {inference.device}.{written} {versions}.")


def lines(inference: Inference) -> list[tuple[str, list[str]]]:
    """Name and figures, by batch size."""
    ordered = sorted(inference.timings, key=lambda timing: timing.batch)
    return [(f"{name_of(timing)}, batch {timing.batch}", cells(inference, timing)) for timing in ordered]


def render(bench: BenchResults) -> str:
    """The page's section; empty where no answers were measured."""
    inference = bench.inference
    if inference is None:
        return ""
    names = list(dict.fromkeys(map(name_of, inference.timings)))
    colours = {name: f"p{number % 8}" for number, name in enumerate(names)}
    grouped = [(f"batch {size}", [
        Bar(name_of(timing), rate_text(timing.rows_per_second), timing.rows_per_second, colours[name_of(timing)])
        for timing in inference.timings if timing.batch == size])
        for size in sorted({timing.batch for timing in inference.timings})]
    chart = charts.groups("Answers", "Rows a second; longer is better.", grouped,
                          [(colours[name], name) for name in names], keyed=True)
    rows: list[TableRow] = [(name, "", figures, "") for name, figures in lines(inference)]
    rows += [(name, "", None, reason) for name, reason in inference.left_out.items()]
    for size, where, published in (("large", "A100", OF_LARGE), ("base", "V100", OF_BASE)):
        if article.is_bert(bench, size):
            rows += [(f"published: {name}, batch {batch}", f"{where}, 128 tokens", [f"{took} ms", *["-"] * 5], "")
                     for name, batch, took in published]
    return chart + section("Latency", f"<p>{html_text(about(inference))}</p>"
                           + table(("", *HEADINGS), rows, "Latency and throughput"), long=True)


def as_markdown(bench: BenchResults) -> str:
    """A table for a README or a ticket."""
    if bench.inference is None:
        return ""
    rows = [f"| {name} | {' | '.join(figures)} |" for name, figures in lines(bench.inference)]
    rows += [f"| {name} | {markdown_text(reason)} |" + " |" * (len(HEADINGS) - 1)
             for name, reason in bench.inference.left_out.items()]
    return "\n".join(["| answers | " + " | ".join(HEADINGS) + " |", "|---|" + "---:|" * len(HEADINGS), *rows, "",
                      markdown_text(about(bench.inference)), ""])


def as_text(bench: BenchResults) -> str:
    """The table for a terminal."""
    if bench.inference is None:
        return ""
    shown = [("", list(HEADINGS)), *lines(bench.inference)]
    first = max(len(name) for name, _ in shown)
    widths = [max(len(figures[column]) for _, figures in shown) for column in range(len(HEADINGS))]
    return "\n".join(printable(f"{name:<{first}}  " + "  ".join(
        figure.rjust(width) for figure, width in zip(figures, widths))) for name, figures in shown)
