"""Text for people: sizes, rates and durations, suggestions for what they misspelled; and what must not pass for markup,
a formula or a command of the terminal."""
from __future__ import annotations

import difflib
import html
import math
import re
from typing import Optional

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def printable(text: str) -> str:
    """`text` as it may stand in a line of a terminal, a log or a table. What a terminal would obey and nobody would see
    (escape sequences, line breaks, marks that turn the direction of writing, half a character) is shown as \\x1b."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """As printable, for a text of several lines. No line but the first begins at the margin, as a line of debzero's own
    would."""
    first, *rest = text.split("\n")
    return "\n".join([printable(first), *(printable(line if line[:1] in ("", " ") else f"  {line}") for line in rest)])


def short(value: object) -> str:
    """A value as Python writes it, for an error: never more than a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def html_text(text: str) -> str:
    """A text for a page, between tags or in an attribute."""
    return html.escape(printable(text))


# What is markup in a line of Markdown. GitHub's also makes links of bare addresses, and emphasis of _ beside a word.
MARKUP = re.compile(r"[\\`*\[\]<|&~]|:(?=//)|(?<=www)\.|(?<!\w)_|_(?!\w)", re.IGNORECASE)


def markdown_text(text: str) -> str:
    """A text for a line or a table's cell of Markdown, in which nothing is markup, a link or HTML."""
    return MARKUP.sub(r"\\\g<0>", printable(text))


def csv_cell(value: object) -> object:
    """A value for a CSV file: a spreadsheet takes a text for a formula if it begins like one."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


MOST_CHOICES = 60


def did_you_mean(word: object, choices: list[str], least: float = 0.6) -> str:
    """The choice that `word` resembles, else all of them. `least`: how much of both must be the same, 1 for all."""
    close = difflib.get_close_matches(str(word), choices, 1, least)
    return f"did you mean {close[0]}?" if close else f"use one of: {', '.join(choices[:MOST_CHOICES])}" + (
        f" and {len(choices) - MOST_CHOICES} more" if len(choices) > MOST_CHOICES else "")


def parse_bytes(text: str) -> int:
    """Bytes of 40G, 256GiB, 1.5T or 123, in powers of 1024; raises a ValueError for anything else."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(),
                         re.IGNORECASE | re.ASCII)  # else the sign of kelvin would be a K
    if not found:
        raise ValueError(f"must be a size such as 40G or 2T, not {text[:40]!r}")
    return int(float(found[1]) * UNITS[found[2].upper()])


def bytes_text(value: Optional[float]) -> str:
    """Bytes for people, to about three figures: 484 MiB, 7.35 GiB, 31.2 GiB."""
    if value is None:
        return "-"
    return f"{value / 2**20:.0f} MiB" if value < 2**30 else f"{value / 2**30:.{2 if value < 10 * 2**30 else 1}f} GiB"


def rate_text(value: float) -> str:
    """A speed for people: 1218, 74.6, 3.21, 0.035."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def duration_text(seconds: Optional[float]) -> str:
    """1:02:03 (hours), or 2:03; - where it is unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def computing_text(tflops: float, share: Optional[float]) -> str:
    """A rank's computing speed; `share`: the part of its device's peak, if known."""
    speed = f"{tflops:.1f} TFLOP/s" if tflops >= 1 else f"{1000 * tflops:.3g} GFLOP/s"
    return speed + (f" ({share:.0%} of peak)" if share else "")


def memory_text(ranks: list[int]) -> str:
    """Memory per rank; `ranks`: bytes of each. The least and the most where they differ."""
    low, high = (f"{value / 2**30:.2f}" for value in (min(ranks), max(ranks)))
    return f"{low} GiB" if low == high else f"{low}-{high} GiB"


def ratio_text(value: float) -> str:
    """A ratio that may not be whole, to about two decimals: 3, 2.5, 2.67, 0.0039."""
    return f"{round(value, 2 if value >= 1 else 4):g}"


def type_text(value: object) -> str:
    """What a value from YAML or JSON is, for errors: text, a list, a number."""
    names = {str: "text", list: "a list", dict: "a mapping", bool: "true or false", int: "a number", float: "a number",
             type(None): "nothing"}
    return names.get(type(value), f"a {type(value).__name__}")


def count_text(count: int, noun: str) -> str:
    """A number of things: 1 epoch, 2 epochs, 1 class, 2 classes, 1 micro-batch, 2 micro-batches."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith(('s', 'tch')) else 's'}"
