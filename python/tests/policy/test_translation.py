"""README.zh-CN.md is README.md in Chinese: whoever follows it types the same commands and gets to the same places."""
from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from checkout import ROOT, refuse, without_comments

ORIGINAL, TRANSLATION = "README.md", "README.zh-CN.md"
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def sections(markdown: str) -> list[dict[str, list[Any]]]:
    """What each section has in any language. In Chinese words have another order, so code and links in prose do, too;
    commands in blocks keep theirs, less their comments."""
    bare = FENCED.sub(lambda block: without_comments(block.group()), markdown)
    return [shape(section) for section in re.split(r"^(?=#+ )", bare, flags=re.MULTILINE) if section]


def shape(section: str) -> dict[str, list[Any]]:
    prose = FENCED.sub("", section)
    return {
        "level of the heading": [len(section) - len(section.lstrip("#"))],
        "blocks of code": [line.rstrip() for block in FENCED.findall(section) for line in block.splitlines()],
        "code in the text": sorted({" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)}),
        "links": sorted(set(re.findall(r"\]\(([^)\s]+)\)", prose)) - {ORIGINAL, TRANSLATION}),
        "rows of tables": [len(re.findall(r"^\|", prose, re.MULTILINE))],
        "items of lists": [len(re.findall(r"^(?:-|\d+\.) ", prose, re.MULTILINE))],
    }


def differences(original: str, translation: str) -> Iterator[str]:
    for number, (one, other) in enumerate(zip_longest(sections(original), sections(translation), fillvalue={}), 1):
        for what in {**one, **other}:
            ours, theirs = one.get(what, []), other.get(what, [])
            if ours != theirs:
                lacks = [item for item in ours if item not in theirs], [item for item in theirs if item not in ours]
                yield f"section {number}, {what}: {lacks[0]} and {lacks[1]}" if any(lacks) else \
                    f"section {number}, {what}: in another order"


def read(name: str) -> str:
    return (ROOT / name).read_text()


def test_both_have_the_same_sections_commands_and_links():
    refuse(differences(read(ORIGINAL), read(TRANSLATION)))


def test_each_begins_with_a_link_to_the_other():
    assert [f"]({name})" in read(other).splitlines()[1]
            for name, other in ((ORIGINAL, TRANSLATION), (TRANSLATION, ORIGINAL))] == [True, True]


def test_the_chinese_text_is_chinese():
    """No paragraph was left in English, and punctuation after Chinese is Chinese."""
    prose = re.sub(r"`[^`]+`|\]\([^)\s]+\)", "", FENCED.sub("", read(TRANSLATION)))
    paragraphs = [text for text in re.split(r"\n\s*\n|^\|[- |]+$", prose, flags=re.MULTILINE) if text.strip(" |-\n#")]
    refuse(text for text in paragraphs[1:] if not re.search(r"[\u4e00-\u9fff]", text))
    refuse(re.findall(r"[^\n]{0,9}[\u4e00-\u9fff][,.;:!?()][^\n]{0,9}", prose))


def test_the_checks_see_what_is_wrong():
    text = "# A\n\n```sh\nmake a\nmake b   # one\n```\n\n## B\n\n- `c\n  d` and [e](f.md)\n\n| g |\n"
    translated = text.replace("# A", "# 甲").replace("   # one", "  # 一").replace("c\n  d", "c d")
    assert translated != text and not list(differences(text, translated))
    for old, new in {"make b": "make c", "make a\nmake b": "make b\nmake a", "## B": "### B", "`c": "`C", "- `": "`",
                     "f.md": "g.md", "| g |": "g"}.items():
        assert len(list(differences(text, text.replace(old, new)))) == 1, old
    assert list(differences(text, text + "## C\n"))
