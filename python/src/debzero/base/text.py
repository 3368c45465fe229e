"""Words and numbers as people read and write them."""
from __future__ import annotations

import difflib


def did_you_mean(word: object, choices: list[str]) -> str:
    close = difflib.get_close_matches(str(word), choices, 1, 0.6)
    return f"did you mean {close[0]}?" if close else f"use one of: {', '.join(choices)}"
