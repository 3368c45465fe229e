"""The parts that a bench's page and the comparison share: the page itself, its sections, tables and lists of facts."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from debzero.base.text import html_text
from debzero.bench import charts

# Name, description, cells or None, and the reason why there are none.
TableRow = tuple[str, str, Optional[Sequence[str]], str]


def shell(title: str, body: str, writer: str = "debzero bench") -> str:
    """A whole page around `body`. `writer`: the command that it comes from."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
            # Even a mistake in this file cannot make a page that asks for something.
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'"/>'
            f"<title>{html_text(title)}</title><style>\n{style}</style></head>\n"
            f'<body>{charts.PATTERNS}<main class="page">{body}'
            f"<footer>Written by {html_text(writer)}. The JSON beside the page holds the same figures, run by run."
            "</footer></main></body></html>\n")


def section(title: str, body: str, long: bool = False) -> str:
    """Details behind the charts: shown on a desk and on paper, folded under their title on a phone. `long`: may break
    across printed pages."""
    return (f'<details class="card{" long" if long else ""}"><summary><h2>{html_text(title)}</h2></summary>'
            f"{body}</details>")


def notes(texts: Sequence[str]) -> str:
    return "".join(f'<p class="note">{html_text(text)}</p>' for text in texts)


def terms(pairs: Sequence[tuple[str, object]]) -> str:
    """Names and values as a list, without the values that are not known."""
    shown = [(name, str(value)) for name, value in pairs if value not in (None, "")]
    return "<dl>" + "".join(f"<dt>{html_text(name)}</dt><dd>{html_text(value)}</dd>" for name, value in shown) + "</dl>"


def table(headings: Sequence[str], rows: Sequence[TableRow], caption: str) -> str:
    """A table; on a phone each of its rows becomes a list of "heading: cell"."""
    head = "".join(f'<th role="columnheader" scope="col">{html_text(name)}</th>' for name in headings)
    body = []
    for name, about, figures, why in rows:
        description = f'<span class="about">{html_text(about)}</span>' if about else ""
        if figures is None:
            rest = f'<td role="cell" class="reason" colspan="{len(headings) - 1}">{html_text(why)}</td>'
        else:
            rest = "".join(f'<td role="cell" data-label="{html_text(heading)}">{html_text(figure)}</td>'
                           for heading, figure in zip(headings[1:], figures))
        body.append(f'<tr role="row"><th role="rowheader" scope="row"><span class="label">{html_text(name)}</span>'
                    f"{description}</th>{rest}</tr>")
    return (f'<table role="table" aria-label="{html_text(caption)}">'
            f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>'
            f'<tbody role="rowgroup">{"".join(body)}</tbody></table>')
