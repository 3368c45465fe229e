"""The house rules: packages that say what belongs there, and plain English."""
from __future__ import annotations

import ast
import re

from checkout import files, refuse

FLAT = {"__init__", "__main__", "cli"}  # the modules that lie outside the packages
SOURCES = files("python/src/debzero/*.py")
PAPERS = ("README.md", "CONTRIBUTING.md", "docs/*.md", "debian/*", "roles/*.md", "inventory/*", "Makefile")
# Words that a native speaker stumbles over, and what to write in their place.
STUMBLES = {
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\bwithout a word\b": "silently",
    r"\b(?:goes|go|went|going) on from\b": "resumes from",
    r"\b(?:it|run|job|training) goes on\b": "continues, resumes",
    r"\bwithout looking\b": "baseline",
}


def stumbles(texts: dict[str, str]) -> list[str]:
    flat = {name: re.sub(r"\s+", " ", text) for name, text in texts.items()}
    return [f"{name}: {match.group()} (write: {better})" for name, text in flat.items()
            for pattern, better in STUMBLES.items() for match in re.finditer(pattern, text, re.IGNORECASE)]


def test_every_package_says_what_belongs_there():
    packages = {name.rpartition("/")[0] for name in SOURCES}
    for package in packages:
        text = ast.get_docstring(ast.parse(SOURCES[f"{package}/__init__.py"])) or ""
        assert re.match(r"\S.{30,}[.]", text, re.DOTALL), f"{package}/__init__.py has no sentence: {text!r}"


def test_no_module_lies_outside_the_packages():
    assert {name.split("/")[-1].removesuffix(".py") for name in SOURCES if name.count("/") == 3} == FLAT


def test_people_read_plain_english():
    refuse(stumbles(files(*PAPERS, without=("debian/changelog",))))


def test_the_checks_see_what_is_wrong():
    shown = "It was mended\nand goes\non from step 3, without a word. Recommended."
    assert stumbles({"x": shown}) == ["x: mended (write: fix)", "x: without a word (write: silently)",
                                      "x: goes on from (write: resumes from)"]
