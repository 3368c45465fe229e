"""The papers: their links and commands lead somewhere, and what they quote and list is what the code has."""
from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Iterator

import pytest
from checkout import ROLES, ROOT, commands, files, load, missing, refuse, settings, subcommands, targets

PAPERS = files("README*.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md")
SOURCE = ROOT / "python/src/debzero"


def links(markdown: str) -> list[str]:
    """Targets of links to files of this repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", markdown, flags=re.DOTALL))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(markdown: str) -> set[str]:
    """The anchors of the headings, as forges make them."""
    headings = re.findall(r"^#+ (.*)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(name: str, target: str) -> bool:
    """Whether a link in the file `name` leads nowhere."""
    path, _, anchor = target.partition("#")
    file = (ROOT / name).parent / path if path else ROOT / name
    return not file.exists() or bool(anchor) and anchor not in anchors(file.read_text())


def unknown_modules(text: str, packages: set[str]) -> list[str]:
    """Modules that a text names as package/module and that are not there."""
    named = re.findall(rf"(?<![\w/.<-])({'|'.join(sorted(packages))})/(\w+)(?![\w/.*])", text)
    return [f"{package}/{module}" for package, module in named if not (SOURCE / package / f"{module}.py").is_file()]


def columns(line: str) -> int:
    """Its width in a terminal, where a Chinese character takes two columns."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


def texts(source: str) -> Iterator[str]:
    """The string constants of a Python source; of an f-string, each part between two braces."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def quotes(markdown: str) -> list[str]:
    """What a table's first column quotes of messages: its code spans that hold a space."""
    rows = re.findall(r"^\| ([^|]*) \|", markdown, re.MULTILINE)
    return [span for row in rows for span in re.findall(r"`([^`]*)`", row) if " " in span]


def pieces(quote: str) -> list[str]:
    return [piece for part in quote.split("...") if (piece := part.strip())]


def test_every_link_leads_somewhere():
    refuse(f"{name}: {target}" for name, text in files("*.md").items()
           for target in links(text) if broken(name, target))


def test_every_command_and_file_that_is_named_exists():
    known, ours = targets((ROOT / "Makefile").read_text()), subcommands()
    refuse(f"{name}: {lack}" for name, text in PAPERS.items() for command in commands(text)
           for lack in missing(command, known, ours))


def unknown_variables(text: str) -> list[str]:
    """Variables that a text shows, by names that begin with a role's, and that no role has."""
    shown = re.findall(rf"(?<![\w/.-])((?:{'|'.join(ROLES)})_\w+)(?!\.py)\b", "\n".join(commands(text)))
    return [name for name in shown if not re.search(rf"^{name}:", settings(), re.MULTILINE)]


def test_every_variable_that_is_named_exists():
    refuse(f"{name}: {variable}" for name, text in PAPERS.items() for variable in unknown_variables(text))


def test_what_goes_back_is_held_whole():
    """debzero asks for this environment or a later one: held alone, it would get the next one's."""
    said = [command.split() for command in commands(PAPERS["docs/install.md"])]
    back = {word.partition("=")[0] for words in said if "--allow-downgrades" in words for word in words if "=" in word}
    held = [set(words[2:]) for words in said if words[:2] in (["apt-mark", "hold"], ["apt-mark", "unhold"])]
    assert held == [back, back] and "debzero" in back


def test_the_lines_of_prose_are_short():
    """Tables cannot be wrapped; those of a README are narrow all the same."""
    refuse(f"{name}:{number}: {columns(line)} columns" for name, text in PAPERS.items()
           for number, line in enumerate(text.splitlines(), 1)
           if columns(line) > 120 and (name.startswith("README") or not line.startswith("|")))


def test_troubleshooting_quotes_messages_that_the_code_prints():
    python = files("python/src/*.py", "ansible/*.py", "roles/*.py").values()
    printed = "\n".join(text for source in python for text in texts(source))
    printed += re.sub(r"\s+", " ", "\n".join(files("roles/*.yml", "playbooks/*.yml", "molecule/shared/*.yml").values()))
    quoted = quotes(PAPERS["docs/troubleshooting.md"])
    assert len(quoted) > 30
    refuse(f"nothing prints {piece!r} (of `{quote}`)" for quote in quoted
           for piece in pieces(quote) if piece not in printed)


def listed_packages() -> set[str]:
    """The rows of architecture's table."""
    table = PAPERS["docs/architecture.md"].partition("## The packages")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))


def test_architecture_lists_every_package():
    assert listed_packages() == {path.parent.name for path in SOURCE.glob("*/__init__.py")} | {"cli"}


def test_every_module_that_is_named_exists():
    refuse(f"{name}: {module}" for name, text in PAPERS.items() for module in unknown_modules(text, listed_packages()))


def test_each_decision_is_dated_listed_and_short():
    listed = PAPERS["docs/decisions/README.md"]
    decisions = files("docs/decisions/0*.md")
    assert len(decisions) >= 9
    for name, text in decisions.items():
        title, date = re.match(r"# (.+)\n\nDate: (\d{4}-\d\d-\d\d)", text).groups()
        assert f"| [{title}]({name.rpartition('/')[2]}) | {date} |" in listed
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
        assert text.count("\n") <= 60


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_under_the_repository_s_license(role):
    assert load(f"roles/{role}/meta/main.yml")["galaxy_info"]["license"] == "Apache-2.0"


def test_the_license_is_the_one_that_the_package_names():
    text = (ROOT / "LICENSE").read_text()
    assert re.match(r"\s+Apache License\s+Version 2\.0, January 2004\s", text) and "END OF TERMS AND CONDITIONS" in text
    assert set(re.findall(r"^License: (.*)$", (ROOT / "debian/copyright").read_text(), re.MULTILINE)) == {"Apache-2.0"}


def test_no_measurement_is_half_done():
    refuse(f"{name}: {word}" for name, text in files("docs/benchmarks/*.md").items()
           for word in re.findall(r"(?i)do not trust|time ended|not measured (?:yet|before)", text))


def test_the_checks_see_what_is_wrong():
    assert links("[a](b.md) `[c](d)` [e](https://x) [f](#g)") == ["b.md", "#g"]
    assert anchors("# A b: c's\n## D") == {"a-b-cs", "d"}
    assert broken("README.md", "nothing.md") and broken("README.md", "#nothing") and not broken("README.md", "LICENSE")
    assert unknown_modules("job/schema, `job/no_such` x/job/y job/a.py run/", {"job", "run"}) == ["job/no_such"]
    assert unknown_variables("`cuda_source` `cuda_no_such: 1` `cuda_x.py` a cuda_y\n```\nbase_no: 1\n```\n") \
        == ["base_no", "cuda_no_such"]
    assert columns("a中，") == 5
    assert list(texts('f"a {b} c" "d"')) == ["a ", " cd"]
    assert quotes("| `a b ... c` and `d` | `e f` |\n") == ["a b ... c"] and pieces("a b ... c") == ["a b", "c"]
