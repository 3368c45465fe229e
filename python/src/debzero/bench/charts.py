"""Bar charts for a page without scripts: text in HTML, so that it wraps, scales and is read aloud; shapes in inline
SVG, which printers keep where they drop background colours. Lengths are shares of the track's width, so one chart fits
a phone and a desk."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Optional

from debzero.base.text import html_text

# Once in each page: the pattern for "elsewhere than in the GPU's memory".
PATTERNS = """<svg class="patterns" width="0" height="0" aria-hidden="true" focusable="false"><defs>
<pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<rect class="hatch" width="3" height="7"/></pattern>
</defs></svg>"""


@dataclass
class Bar:
    """One row. `length` and the limits of `spread` are in the unit of the chart's `longest`."""

    name: str
    value: str                                    # beside the bar
    length: Optional[float] = None                # None: nothing to draw, `value` says why
    colour: str = "c0"                            # a class of page.css
    hatched: bool = False
    spread: Optional[tuple[float, float]] = None
    parts: Sequence[tuple[str, float]] = field(default_factory=tuple)  # instead of one length: (colour, length)
    mark: Optional[float] = None                  # a line across the track


def percent(length: float, longest: float) -> str:
    return f"{100 * length / longest:.2f}%" if longest else "0%"


def _track(bar: Bar, longest: float) -> str:
    shapes = ['<rect class="track" width="100%" height="100%" rx="3"/>']
    start = 0.0
    for colour, length in bar.parts or [(bar.colour, bar.length or 0.0)]:
        place = f'x="{percent(start, longest)}" width="{percent(length, longest)}" height="100%"'
        rounded = "" if bar.parts else ' rx="3"'
        shapes.append(f'<rect class="fill {colour}" {place}{rounded}/>')
        if bar.hatched:
            shapes.append(f'<rect {place}{rounded} fill="url(#hatch)"/>')
        start += length
    if bar.spread and bar.spread[0] < bar.spread[1]:
        low, high = (percent(limit, longest) for limit in bar.spread)
        shapes += [f'<line class="spread" x1="{low}" x2="{high}" y1="50%" y2="50%"/>',
                   *(f'<line class="spread" x1="{end}" x2="{end}" y1="25%" y2="75%"/>' for end in (low, high))]
    if bar.mark is not None:
        at = percent(bar.mark, longest)
        shapes += [f'<line class="{kind}" x1="{at}" x2="{at}" y1="-12%" y2="112%"/>' for kind in ("halo", "mark")]
    return f'<svg class="plot" aria-hidden="true" focusable="false">{"".join(shapes)}</svg>'


def longest(bars: Iterable[Bar]) -> float:
    """What the track's whole width stands for: the longest bar, with room for its spread and its mark."""
    return max((max(bar.length or 0.0, sum(length for _, length in bar.parts), bar.mark or 0.0, *(bar.spread or (0.0,)))
                for bar in bars), default=0.0) * 1.02


def bar_list(bars: Sequence[Bar], width: Optional[float] = None) -> str:
    """The bars as a list, on a scale of their own or on that of several lists (`width`). Long names always stand above
    their bars."""
    scale = width or longest(bars)
    items = []
    for bar in bars:
        drawn = bar.length is not None or bar.parts
        name, value = html_text(bar.name), html_text(bar.value)
        items.append(f'<li class="bar{"" if drawn else " none"}"><span class="name">{name}</span>'
                     + (_track(bar, scale) if drawn else "") + f'<span class="value">{value}</span></li>')
    letters = max((len(bar.name) for bar in bars), default=0)
    kind = " stacked" if letters > 16 else " short" if letters < 8 else ""
    return f'<ol class="bars{kind}">{"".join(items)}</ol>'


def figure(title: str, caption: str, bars: Sequence[Bar], badge: str = "") -> str:
    shown = f' <span class="badge">{html_text(badge)}</span>' if badge else ""
    return (f'<figure class="card"><h2>{html_text(title)}{shown}</h2>{bar_list(bars)}'
            f"<figcaption>{html_text(caption)}</figcaption></figure>")


def groups(title: str, caption: str, grouped: Sequence[tuple[str, Sequence[Bar]]],
           legend: Sequence[tuple[str, str]] = (), keyed: bool = False) -> str:
    """Several lists of bars under names of their own, on one scale; `legend`: (colour, what it stands for). `keyed`:
    the legend tells the bars of a list apart, so a phone shows them without their names."""
    width = longest(bar for _, bars in grouped for bar in bars)
    lists = "".join((f"<h3>{html_text(name)}</h3>" if name else "") + bar_list(bars, width) for name, bars in grouped)
    keys = "".join(f'<li><svg class="key" aria-hidden="true" focusable="false"><rect class="fill {colour}" '
                   f'width="100%" height="100%" rx="2"/></svg>{html_text(meaning)}</li>' for colour, meaning in legend)
    key = f'<ul class="legend">{keys}</ul>' if keys else ""
    return (f'<figure class="card{" keyed" if keyed else ""}"><h2>{html_text(title)}</h2>{key}'
            f"{lists}<figcaption>{html_text(caption)}</figcaption></figure>")
