"""What the fuzzers share: damaged values and bytes, and the limits that no input may break.

Each fuzzer starts from something valid and damages it a little: most of what is random ends at the first character. An
input may be refused, but only with an error for people: no other exception, no hang, no gigabytes, and nothing on the
terminal that it would obey.
"""
from __future__ import annotations

import contextlib
import copy
import io
import json
import resource
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Callable

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from debzero import cli

LIMIT_SECONDS, LIMIT_BYTES = 10, 2**30
FIXED = 300  # inputs of each kind in `make test`, the same each time; more are others each time
MARKUP = "<img src=x onerror=alert(1)>"
TEXTS = ["", " ", "auto", "none", "0", "-1", "1e999", "nan", "true", "=1+1", "@x", "|", "`", MARKUP,
         "\x1b[2J\x1b]0;x\x07", "a\nb",
         "\r", "\t", "\0", "\u202e", "\u2028", "\x9b31m", "\ud800", "\udcff", "é", "😀", "/", "..", "/dev/zero",
         "/dev/stdin", "~", "~nobody/x", "x" * 300, "a/" * 3000, "{", "%s%n", "${HOME}", "zero[stage]", "none.csv"]
NUMBERS = [0, 1, -1, 2, 3, 2**31, 2**63, -(2**63), 10**19, 10**39, 10**45, 0.5, 1e308, -1e308, float("inf"),
           float("nan"), 1e-320]
SCALARS = st.one_of(st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(TEXTS), st.integers(),
                    st.floats(), st.text(max_size=20))
VALUES = st.recursive(SCALARS, lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(TEXTS) | st.text(max_size=8), inner, max_size=3)),
    max_leaves=6)
DEEP: list[Any] = [json.loads("[" * 90 + "]" * 90)]


@dataclass
class Figures:
    """What a fuzzer met."""

    kind: str
    inputs: int = 0
    refused: int = 0
    slowest: float = 0.0     # seconds
    most_bytes: int = 0      # by which one input made the process larger

    def __str__(self) -> str:
        return (f"{self.kind:<12}{self.inputs} inputs, {self.refused} refused, the slowest {self.slowest:.2f} s, the "
                f"largest {self.most_bytes / 2**20:.0f} MiB")


def fuzz(figures: Figures, cases: int, inputs: st.SearchStrategy, check: Callable[[Any], int]) -> None:
    """Try `cases` inputs. `check` returns an exit code, and raises what must not be raised."""
    @settings(max_examples=cases, deadline=None, database=None, derandomize=cases <= FIXED, print_blob=True,
              suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink])
    @given(inputs)
    def one(value: Any) -> None:
        with limits(figures):
            code = check(value)
        figures.inputs += 1
        figures.refused += code != 0

    one()


@contextlib.contextmanager
def limits(figures: Figures) -> Iterator[None]:
    """Ends a block that hangs, in seconds of this process (the machine may be busy), and refuses one that takes too
    much."""
    def late(*_: object) -> None:
        raise TimeoutError(f"more than {LIMIT_SECONDS} s")

    before, memory = signal.signal(signal.SIGVTALRM, late), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_SECONDS)
    began = time.process_time()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        figures.slowest = max(figures.slowest, time.process_time() - began)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
        figures.most_bytes = max(figures.most_bytes, grown)
    assert grown < LIMIT_BYTES, f"{grown / 2**20:.0f} MiB for one input"


def command(*arguments: object) -> tuple[int, str]:
    """The exit code of a debzero command and what it printed, which must be fit for a terminal."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit:  # argparse's
            code = int(exit.code or 0)
    printed = out.getvalue() + err.getvalue()
    assert code in (0, 1, 2), code
    bad = {c for c in printed if c != "\n" and not c.isprintable()}
    assert not bad, (bad, printed[:500])
    assert "Traceback" not in printed, printed
    return code, printed


def paths(values: Any, above: tuple = ()) -> Iterator[tuple]:
    """Where a value lies in `values`: the keys and numbers that lead to it."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in inner:
        yield (*above, key)
        yield from paths(value, (*above, key))


@st.composite
def damaged(draw: Any, base: Any, known: dict[tuple, st.SearchStrategy] = {}) -> Any:  # noqa: B006 - only read
    """`base` with up to four values replaced, removed or added. `known`: values for a path that may be valid ones."""
    values = copy.deepcopy(base)
    for _ in range(draw(st.integers(0, 4))):
        found = list(paths(values))
        if not (found or known):
            break
        where = draw(st.sampled_from([*found, *known]))
        *above, last = where
        inner = values
        for part in above:
            inner = inner[part] if (isinstance(inner, dict) and part in inner) or (
                isinstance(inner, list) and isinstance(part, int) and part < len(inner)) else None
        is_item = isinstance(inner, list) and isinstance(last, int) and last < len(inner)
        if not isinstance(inner, dict) and not is_item:
            continue
        what = draw(st.integers(0, 9))
        if what == 0 and (isinstance(inner, list) or last in inner):
            del inner[last]
        elif what == 1 and isinstance(inner, dict):
            inner[draw(st.sampled_from(TEXTS) | st.text(max_size=6))] = draw(VALUES)
        elif what == 2:
            inner[last] = copy.deepcopy(DEEP)
        else:
            inner[last] = copy.deepcopy(draw(known[where] if where in known and what < 8 else VALUES))
    return values


@st.composite
def spoilt(draw: Any, content: bytes, tokens: list[bytes]) -> bytes:
    """`content` with bits flipped, pieces removed, doubled or cut off, and `tokens` put in."""
    made = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(made)))
        what = draw(st.integers(0, 5))
        if what == 0 and at < len(made):
            made[at] ^= 1 << draw(st.integers(0, 7))
        elif what == 1:
            del made[at:at + draw(st.integers(1, 40))]
        elif what == 2:
            made[at:at] = made[at:at + draw(st.integers(1, 400))]
        elif what == 3 and draw(st.integers(0, 3)) == 0:
            del made[at:]
        elif what == 4:
            made[at:at] = draw(st.binary(max_size=8))
        else:
            made[at:at] = draw(st.sampled_from(tokens))
    return bytes(made)


def as_json(values: Any) -> bytes:
    """JSON as Python writes it, with the infinite numbers and half characters that it may hold."""
    return json.dumps(values).encode("utf-8", "surrogatepass")


JSON_TOKENS = [b"[" * 2000, b'{"a":' * 500, b"9" * 5000, b"NaN", b"-Infinity", b"1e999", b'"\\ud800"', b"\\u0000",
               b"\xff", b"\xef\xbb\xbf", b"null", b"{}", b"[]", b",", b'"', b"\n", b"\0", b"1", b"-", b"true"]
