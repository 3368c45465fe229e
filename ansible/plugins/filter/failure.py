"""Why a task failed: a filter without side effects, for playbooks that rescue; the callback fleet uses it, too."""
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Callable

LINES = 20  # of a command's output
# A job writes to its journal, and a host prints, what it likes: no sequence of theirs commands the terminal that shows
# it. C0 less the tab and the newline, DEL, and C1.
CONTROL = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f]")


def cause(result: Mapping[str, Any]) -> str:
    """Why a task failed, in the words that say most, without control characters."""
    return CONTROL.sub("", _words(result))


def _words(result: Mapping[str, Any]) -> str:
    failed = [item for item in result.get("results", []) if item.get("failed") or item.get("unreachable")]
    if failed:
        return "\n".join(dict.fromkeys(map(_words, failed)))
    # The first task of each host: what sudo or the shell said of a module that did not run is one level below.
    modules = list((result.get("failed_modules") or {}).values())
    if modules:
        return "\n".join(dict.fromkeys(map(_words, modules)))
    message = str(result.get("msg") or "").replace("Task failed: ", "").strip()
    if message and not re.match(r"non-zero return code|MODULE FAILURE|Module result deserialization failed", message):
        return message
    printed = str(result.get("stderr") or result.get("module_stderr") or result.get("stdout") or "").strip()
    return "\n".join(printed.splitlines()[-LINES:]) or message or "its output is hidden"


def unit_reasons(journals: Mapping[str, Any]) -> str:
    """What the units of jobs say. `journals`: registered in a loop over the failed items of a loop over jobs."""
    return CONTROL.sub("", "\n".join(
        f"debzero@{one['item']['item']} does not train:\n"
        + (str(one.get("stdout", "")).strip() or _words(one["item"])) for one in journals["results"]))


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"failure_cause": cause, "failure_unit_reasons": unit_reasons}
