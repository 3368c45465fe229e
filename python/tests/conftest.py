"""`make test` runs two tests at a time: two chains of containers first, then the rest, file by file."""
from __future__ import annotations

import pytest


def chain(item: pytest.Item) -> str:
    """The tests of a chain run one after the other, in their order."""
    if not item.get_closest_marker("container"):
        return item.nodeid.split("::")[0]
    return "containers" if item.get_closest_marker("apart") is None else "containers apart"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.xdist_group(chain(item)))
    items.sort(key=lambda item: not item.get_closest_marker("container"))
