"""Changes the text of a DeepSpeed configuration only where its values change: numbers, order, layout and comments of
the rest stay as their author wrote them."""
from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional

# Blanks and comments, as Hjson has them.
SKIPPED = re.compile(r"(?:\s|#[^\n]*|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
BARE_KEY = re.compile(r"[^\s:{}\[\],\"']+")
DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Node:
    """A value and its place in the text; `members` of an object only."""

    start: int
    end: int
    value: Any
    members: Optional[list[Member]] = None


@dataclass(frozen=True)
class Member:
    start: int   # of its key
    key: str
    node: Node


def rewritten(text: str, config: dict[str, Any]) -> Optional[str]:
    """`text`, a JSON object that may hold comments, with the values of `config`; None where this module cannot."""
    try:
        root = _node(text, _skip(text, 0))
    except (ValueError, IndexError, RecursionError):
        return None
    return text[:root.start] + _Writer(text, root).emit(root, config) + text[root.end:]


def _skip(text: str, at: int) -> int:
    found = SKIPPED.match(text, at)
    return found.end() if found else at


def _node(text: str, at: int) -> Node:
    """The value that starts at `at`. Raises a ValueError or an IndexError where there is none."""
    if text[at] != "{":
        value, end = DECODER.raw_decode(text, at)
        return Node(at, end, value)
    members, place = [], _skip(text, at + 1)
    while text[place] != "}":
        start = place
        bare = BARE_KEY.match(text, place)
        key, place = (bare[0], bare.end()) if bare else DECODER.raw_decode(text, place)
        place = _skip(text, place)
        if text[place] != ":" or not isinstance(key, str):
            raise ValueError(f"no key at {start}")
        node = _node(text, _skip(text, place + 1))
        members.append(Member(start, key, node))
        place = _skip(text, node.end)
        if text[place] == ",":
            place = _skip(text, place + 1)
    return Node(at, place + 1, {m.key: m.node.value for m in members}, members)


def _same(one: Any, other: Any) -> bool:
    """Equal, with types and the order of keys."""
    return json.dumps(one) == json.dumps(other)


class _Writer:
    """Writes values with the user's own text wherever there is one."""

    def __init__(self, text: str, root: Node) -> None:
        self.text = text
        self.scalars = {json.dumps(node.value): text[node.start:node.end] for node in _scalars(root)}

    def emit(self, node: Node, new: Any) -> str:
        if _same(node.value, new):
            return self.text[node.start:node.end]
        if node.members is None or not isinstance(new, dict):
            return self.fresh(new)
        if list(new) != [member.key for member in node.members]:
            return self._with_other_keys(node, node.members, new)
        pieces, place = [], node.start
        for member in node.members:
            pieces += [self.text[place:member.node.start], self.emit(member.node, new[member.key])]
            place = member.node.end
        return "".join(pieces) + self.text[place:node.end]

    def fresh(self, value: Any) -> str:
        """A value that was not in its place before, on one line; a number as it stood elsewhere in the file."""
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(key)}: {self.fresh(inner)}" for key, inner in value.items()) + "}"
        written = json.dumps(value, ensure_ascii=False)
        return self.scalars.get(json.dumps(value), written)

    def _with_other_keys(self, node: Node, members: list[Member], new: dict[str, Any]) -> str:
        """The object with keys removed or added. A comment on a key's line, or above it, stays or goes with the key."""
        leads, tails, commas, place = {}, {}, set(), node.start + 1
        for number, member in enumerate(members):
            tail, lead, comma = self._gap(place, member.start)
            leads[member.key] = lead if number else tail + lead
            if number:
                tails[members[number - 1].key] = tail
                commas.add(comma)
            place = member.node.end
        last, closing, _ = self._gap(place, node.end - 1)
        if members:
            tails[members[-1].key] = last
        opening = leads[members[0].key] if members else ""
        usual = "\n" + opening.rsplit("\n")[-1] if "\n" in opening else " "
        comma, kept, written = "" if commas == {""} else ",", {m.key: m for m in members}, "{"
        for number, (key, value) in enumerate(new.items()):
            lead = leads.get(key, usual)
            if "\n" not in lead + opening:
                lead = usual if number else opening
            name = self.text[kept[key].start:kept[key].node.start] if key in kept else f"{json.dumps(key)}: "
            inner = self.emit(kept[key].node, value) if key in kept else self.fresh(value)
            written += lead + name + inner + (comma if number < len(new) - 1 else "") + tails.get(key, "")
        return written + (closing if new else closing.strip()) + "}"

    def _gap(self, start: int, end: int) -> tuple[str, str, str]:
        """What lies between two members: the rest of the first's line, what precedes the second, and the comma, which
        is in neither."""
        gap = self.text[start:end]
        at = _comma(gap)
        comma = "" if at is None else ","
        gap = gap if at is None else gap[:at] + gap[at + 1:]
        line, newline, rest = gap.partition("\n")
        return (line, newline + rest, comma) if newline else ("", gap, comma)


def _comma(gap: str) -> Optional[int]:
    """The place of the comma that is in no comment."""
    at = _skip(gap, 0)
    return at if at < len(gap) and gap[at] == "," else None


def _scalars(node: Node) -> Iterator[Node]:
    for member in node.members or []:
        yield from _scalars(member.node)
    if node.members is None and not isinstance(node.value, (list, dict)):
        yield node
