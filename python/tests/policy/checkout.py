"""What the policy tests read: the files of this checkout, whole or piece by piece."""
from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from debzero.cli import parser

ROOT = Path(__file__).resolve().parents[3]
ROLES = sorted(path.parent.name for path in (ROOT / "roles").glob("*/tasks"))  # all but `stack`, which holds facts
IMPORTS = {"import_tasks", "include_tasks", "import_role", "include_role", "include_vars"}

TASK_LISTS = ("pre_tasks", "tasks", "post_tasks", "handlers", "block", "rescue", "always")


@cache
def names() -> tuple[str, ...]:
    """Every file that is tracked, or would be with `git add`."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return tuple(sorted({name for name in listed.split("\0") if name and (ROOT / name).is_file()}))


def files(*wanted: str, without: tuple[str, ...] = ()) -> dict[str, str]:
    """{name: text} of the files whose names match a pattern of `wanted` and none of `without`; `*` matches / too."""
    def match(name: str, patterns: tuple[str, ...]) -> bool:
        return any(fnmatch(name, pattern) for pattern in patterns)

    return {name: (ROOT / name).read_text() for name in names() if match(name, wanted) and not match(name, without)}


def load(name: str) -> Any:
    """A YAML file's content; None where there is no such file."""
    path = ROOT / name
    try:
        return yaml.safe_load(path.read_text()) if path.is_file() else None
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: {error}") from None


def stack() -> dict[str, Any]:
    return dict(load("stack.yml")["stack"])


def without_comments(text: str) -> str:
    """The text less what follows a `#`; line numbers stay. Comments may tell of versions and paths."""
    return re.sub(r"(?m)(^|\s)#.*$", r"\1", text)


def hits(pattern: str, texts: dict[str, str]) -> list[str]:
    """"file:line: what was found" of each match."""
    return [f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match.group().strip()}"
            for name, text in texts.items() for match in re.finditer(pattern, text, re.MULTILINE)]


def tasks(content: Any) -> Iterator[dict[str, Any]]:
    """Each task of a task file or a playbook, those of blocks and handlers too."""
    for item in content if isinstance(content, list) else []:
        if isinstance(item, dict):
            inner = [item[key] for key in TASK_LISTS if key in item]
            if not inner and "hosts" not in item:
                yield item
            for part in inner:
                yield from tasks(part)


def plays(content: Any) -> Iterator[dict[str, Any]]:
    """Each play of a playbook, and each import of another one."""
    for item in content if isinstance(content, list) else []:
        if isinstance(item, dict) and any(key.rpartition(".")[2] in ("hosts", "import_playbook") for key in item):
            yield item


def module(task: dict[str, Any]) -> str:
    """A task's module without its namespace; empty for a block."""
    return next((key.rpartition(".")[2] for key in task if "." in key), "")


def targets(makefile):
    """{target: its help text, None where it has none}."""
    found = re.findall(r"^([a-z][\w-]*):(?!=)[^#\n]*(?:## (.+))?$", makefile, re.MULTILINE)
    return {name: text or None for name, text in found}


def commands(markdown):
    """The command lines of a Markdown file: lines of fenced blocks, without prompts and comments, and inline code."""
    fenced = re.findall(r"^ *```[^\n]*\n(.*?)^ *```", markdown, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", markdown, flags=re.MULTILINE | re.DOTALL))
    whole = re.sub(r"\\\n\s*", "", "\n".join(fenced))
    lines = [re.sub(r"^\s*[$#]\s+|\s+#.*", "", line).strip() for line in whole.split("\n")]
    return [line for line in [*lines, *inline] if line]


def subcommands():
    """The commands of `debzero`."""
    return next(action.choices for action in parser()._actions if isinstance(action.choices, dict))


@cache
def settings():
    """What playbooks and roles read, as text: their variables among it."""
    return without_comments("\n".join(files("site.yml", "playbooks/*.yml", "roles/*/defaults/main.yml").values()))


def missing(command, known, subcommands=()):
    """What a command line names that does not exist; the tools of others are theirs to keep."""
    words = command.split()
    if words[0] in ("sudo", "time"):
        return missing(" ".join(words[1:]), known, subcommands) if words[1:] else []
    if words[0] == "make":
        return [f"make {word}" for word in words[1:] if re.fullmatch(r"[a-z][\w-]*", word) and word not in known]
    if words[0] == "debzero" and len(words) > 1 and re.fullmatch(r"[a-z]+", words[1]):
        if words[1] not in subcommands:
            return [f"debzero {words[1]}"]
        options = re.findall(r"(?<= )--?[a-z][\w-]*", re.split(r"[;|&>]", command)[0])
        return [f"debzero {words[1]} {option}" for option in options
                if option not in subcommands[words[1]]._option_string_actions]
    own = words if words[0].endswith("ansible-playbook") else words[:1]
    ours = r"(?:\./)?(?:ansible|playbooks|inventory|molecule|roles|python|debian|\.ci)/[\w./@-]+$|[\w-]+\.yml$"
    given = re.findall(r"(?<= )-e (\w+)=", command) if own is words else []
    return [word for word in own if re.match(ours, word) and not (ROOT / word).exists()] \
        + [f"-e {name}=" for name in given if not re.search(rf"\b{name}\b", settings())]


def refuse(findings: Iterable[str]) -> None:
    """Fail with every finding on a line of its own."""
    found = list(findings)
    if found:
        pytest.fail("\n".join(found), pytrace=False)
