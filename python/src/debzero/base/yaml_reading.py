"""YAML that somebody else wrote, read into what JSON could hold as well: mappings with texts as keys, lists, texts,
numbers, true, false and null. A date stays the text that it is, and so does each key."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from debzero.base.reading import DEEPEST, DIGITS, ContentError, check_depth, check_texts

MOST_NODES = 20_000  # values, each alias counted with all that it stands for
_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without the types that JSON lacks, and with a limit on depth."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"{DEEPEST} levels of nesting are the most",
                                       problem_mark=self.peek_event().start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:  # as of `!!bool maybe`
            raise yaml.MarkedYAMLError(problem=f"{_shown(node)} is no {node.tag.replace(_TAG, '!!')} value",
                                       problem_mark=node.start_mark) from error

    def construct_whole(self, node: Any) -> int:
        """An int, without the thousands of digits that Python refuses, or takes minutes for."""
        if not isinstance(node, yaml.ScalarNode) or len(node.value) > DIGITS:
            raise ValueError
        return int(self.construct_yaml_int(node))


# Copies of the base's tables: PyYAML's own loader stays as it is.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != _TAG + "timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.yaml_constructors = {
    tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag[len(_TAG):] in ("null", "bool", "float", "seq", "map", "str")}
_Loader.add_constructor(_TAG + "int", _Loader.construct_whole)


def _shown(node: Any) -> str:
    return ascii(node.value[:40]) if isinstance(node, yaml.ScalarNode) else "this"


def load(text: str) -> tuple[Any, list[tuple[str, int]]]:
    """The value in `text`, and each repeated key, by its dotted path, with its line. Raises a ContentError."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        repeated = []
        if node is not None:
            _measure(node, (), {})
            repeated = [(".".join(key), line) for key, line in _repeated(node, (), set())]
        values = loader.construct_document(node) if node is not None else None
    except RecursionError:
        raise ContentError("is not YAML: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of the scanner, as for the escape \U00110000
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "file"
        parts = [getattr(error, "context", None), getattr(error, "problem", None)]
        raise ContentError(f"is not YAML: {' '.join(filter(None, parts)) or error}", place) from None
    finally:
        if loader is not None:
            loader.dispose()
    check_depth(values)
    check_texts(values)
    return values, repeated


def _wrong(node: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _measure(node: Any, above: tuple[Any, ...], known: dict[Any, int]) -> int:
    """The number of values that `node` stands for. Raises a YAMLError for too many, for a value that contains itself,
    and for a key that is no text. `above`: the nodes that hold this one; `known`: the numbers that are known."""
    if node in above:
        raise _wrong(node, "a value contains itself")
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if node not in known:
        total = 1
        for item in node.value:
            key, value = item if isinstance(node, yaml.MappingNode) else (None, item)
            if key is not None and not isinstance(key, yaml.ScalarNode):
                raise _wrong(key, "a key must be a text")
            if key is not None and key.tag != _MERGE:
                key.tag = _TAG + "str"  # as in JSON: `on` is no truth and 1 no number there
            total += _measure(value, (*above, node), known)
        if total > MOST_NODES:
            raise _wrong(node, f"it stands for more than {MOST_NODES} values, with what its aliases repeat")
        known[node] = total
    return known[node]


def _repeated(node: Any, path: tuple[str, ...], seen: set[Any]) -> Iterator[tuple[tuple[str, ...], int]]:
    """The path and the line of each key that its mapping already has. `seen`: the nodes already visited, for an alias
    leads to the same node again."""
    if not isinstance(node, yaml.CollectionNode) or node in seen:
        return
    seen.add(node)
    keys = set()
    for number, item in enumerate(node.value):
        key, value = item if isinstance(node, yaml.MappingNode) else (None, item)
        here = (*path, str(number) if key is None else key.value)
        if key is not None and key.tag != _MERGE:
            if key.value in keys:
                yield here, key.start_mark.line + 1
            keys.add(key.value)
        yield from _repeated(value, here, seen)
