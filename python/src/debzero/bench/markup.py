"""The parts that a bench's page and the comparison share: the page itself, its sections, tables and lists of facts."""
from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Optional

from debzero.bench import charts

# Name, description, cells or None, and the reason why there are none.
TableRow = tuple[str, str, Optional[Sequence[str]], str]


def shell(title: str, body: str) -> str:
    """A whole page around `body`."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
            # Even a mistake in this file cannot make a page that asks for something.
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'"/>'
            f"<title>{escape(title)}</title><style>\n{style}</style></head>\n"
            f'<body>{charts.PATTERNS}<main class="page">{body}'
            "<footer>Written by debzero bench. The JSON beside a bench's page holds the same figures, run by run."
            "</footer></main></body></html>\n")


def section(title: str, body: str, long: bool = False) -> str:
    """Details behind the charts: shown on a desk and on paper, folded under their title on a phone. `long`: may break
    across printed pages."""
    return (f'<details class="card{" long" if long else ""}"><summary><h2>{escape(title)}</h2></summary>'
            f"{body}</details>")


def notes(texts: Sequence[str]) -> str:
    return "".join(f'<p class="note">{escape(text)}</p>' for text in texts)


def terms(pairs: Sequence[tuple[str, object]]) -> str:
    """Names and values as a list, without the values that are not known."""
    shown = [(name, str(value)) for name, value in pairs if value not in (None, "")]
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in shown) + "</dl>"


def table(headings: Sequence[str], rows: Sequence[TableRow], caption: str) -> str:
    """A table; on a phone each of its rows becomes a list of "heading: cell"."""
    head = "".join(f'<th role="columnheader" scope="col">{escape(name)}</th>' for name in headings)
    body = []
    for name, about, figures, why in rows:
        description = f'<span class="about">{escape(about)}</span>' if about else ""
        if figures is None:
            rest = f'<td role="cell" class="reason" colspan="{len(headings) - 1}">{escape(why)}</td>'
        else:
            rest = "".join(f'<td role="cell" data-label="{escape(heading)}">{escape(figure)}</td>'
                           for heading, figure in zip(headings[1:], figures))
        body.append(f'<tr role="row"><th role="rowheader" scope="row"><span class="label">{escape(name)}</span>'
                    f"{description}</th>{rest}</tr>")
    return (f'<table role="table" aria-label="{escape(caption)}">'
            f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>'
            f'<tbody role="rowgroup">{"".join(body)}</tbody></table>')
