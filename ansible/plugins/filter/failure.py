"""Why a task failed: a filter without side effects, for playbooks that rescue; the callback fleet uses it, too."""
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Callable

LINES = 20  # of a command's output


def cause(result: Mapping[str, Any]) -> str:
    """Why a task failed, in the words that say most."""
    failed = [item for item in result.get("results", []) if item.get("failed") or item.get("unreachable")]
    if failed:
        return "\n".join(dict.fromkeys(map(cause, failed)))
    message = str(result.get("msg") or "").replace("Task failed: ", "").strip()
    if message and not re.match(r"non-zero return code|MODULE FAILURE", message):
        return message
    printed = str(result.get("stderr") or result.get("module_stderr") or result.get("stdout") or "").strip()
    return "\n".join(printed.splitlines()[-LINES:]) or message or "its output is hidden"


def unit_reasons(journals: Mapping[str, Any]) -> str:
    """What the units of jobs say. `journals`: registered in a loop over the failed items of a loop over jobs."""
    return "\n".join(f"debzero@{one['item']['item']} does not train:\n"
                     + (str(one.get("stdout", "")).strip() or cause(one["item"])) for one in journals["results"])


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"failure_cause": cause, "failure_unit_reasons": unit_reasons}
