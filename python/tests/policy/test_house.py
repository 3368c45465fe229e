"""The house rules for Python code, and the words for people: short modules and functions, plain English."""
from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import PurePath

from checkout import files, refuse

MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_PARAMETERS = 350, 60, 6
FLAT = {"__init__", "__main__", "cli"}  # the modules that lie outside the packages
SOURCES = files("python/src/debzero/*.py")
PAPERS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md", "debian/*", "roles/*.md", "inventory/*",
          "Makefile")
# Words that a native speaker stumbles over, and what to write in their place.
STUMBLES = {
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\bwithout a word\b": "silently",
    r"\b(?:goes|go|went|going) on from\b": "resumes from",
    r"\b(?:it|run|job|training) goes on\b": "continues, resumes",
    r"\bwithout looking\b": "baseline",
}
# Modules of libraries, from a table of constants.
BY_NAME = {("python/src/debzero/run/tensor_file.py", "import_module(CLASSES[kind])")}
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def functions(source: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Each function of a module, with its name within its class."""
    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
        for child in ast.iter_child_nodes(node):
            name = f"{prefix}{child.name}" if isinstance(child, (*Function, ast.ClassDef)) else ""
            if isinstance(child, Function):
                yield name, child
            yield from walk(child, f"{name}." if name else prefix)

    yield from walk(ast.parse(source), "")


def lines(function: ast.FunctionDef) -> int:
    return function.end_lineno - function.lineno + 1


def parameters(function: ast.FunctionDef) -> int:
    """How many it has, self and cls not counted."""
    given = function.args
    named = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(named) - (named[:1] in (["self"], ["cls"])) + bool(given.vararg) + bool(given.kwarg)


def too_large(name: str, source: str) -> Iterator[str]:
    count = source.count("\n")
    if count > MOST_LINES:
        yield f"{name}: {count} lines, at most {MOST_LINES}"
    for function, node in functions(source):
        if lines(node) > MOST_LINES_OF_A_FUNCTION:
            yield f"{name}: {function} has {lines(node)} lines, at most {MOST_LINES_OF_A_FUNCTION}"
        if parameters(node) > MOST_PARAMETERS:
            yield f"{name}: {function} has {parameters(node)} parameters, at most {MOST_PARAMETERS}"


def hidden_imports(name: str, source: str) -> Iterator[str]:
    """Imports that import-linter cannot see: by a name that is only known when the program runs, or debzero's own."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if function in ("import_module", "__import__", "run_module") and (name, ast.unparse(call)) not in BY_NAME:
            target = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else "."
            if str(target).startswith((".", "debzero")):
                yield f"{name}:{call.lineno}: {ast.unparse(call)} hides an import from import-linter"


def strings(source: str) -> str:
    """All string constants of a module that people may read, one per line; docstrings are for developers."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, *Function)
    docstrings = {id(node.body[0].value) for node in ast.walk(tree)
                  if isinstance(node, documented) and ast.get_docstring(node) is not None}
    return "\n".join(node.value for node in ast.walk(tree)
                     if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings)


def stumbles(texts: dict[str, str]) -> list[str]:
    flat = {name: re.sub(r"\s+", " ", text) for name, text in texts.items()}
    return [f"{name}: {match.group()} (write: {better})" for name, text in flat.items()
            for pattern, better in STUMBLES.items() for match in re.finditer(pattern, text, re.IGNORECASE)]


def test_modules_and_functions_are_short():
    assert len(SOURCES) > 80
    refuse(finding for name, source in SOURCES.items() for finding in too_large(name, source))


def test_every_package_says_what_belongs_there():
    packages = {name.rpartition("/")[0] for name in SOURCES}
    for package in packages:
        text = ast.get_docstring(ast.parse(SOURCES[f"{package}/__init__.py"])) or ""
        assert re.match(r"\S.{30,}[.]", text, re.DOTALL), f"{package}/__init__.py has no sentence: {text!r}"


def test_import_linter_sees_every_import():
    """It follows import statements, in packages: folders with an __init__."""
    refuse(finding for name, source in SOURCES.items() for finding in hidden_imports(name, source))
    folders = {parent.as_posix() for name in SOURCES for parent in PurePath(name).parents}
    refuse(f"{folder} has no __init__.py" for folder in sorted(folders)
           if folder.startswith("python/src/debzero") and f"{folder}/__init__.py" not in SOURCES)


def test_no_module_lies_outside_the_packages():
    assert {name.split("/")[-1].removesuffix(".py") for name in SOURCES if name.count("/") == 3} == FLAT


def test_people_read_plain_english():
    papers = files(*PAPERS, without=("debian/changelog",))
    refuse(stumbles({**papers, **{name: strings(source) for name, source in SOURCES.items()}}))


def test_the_checks_see_what_is_wrong():
    body = "\n".join(["        pass"] * 60)
    source = f"class A:\n    def f(self, a, b, c, d, e, f):\n{body}\n\ndef g(a, b, c, d, e, f, *g): ...\n"
    assert list(too_large("x", source)) == ["x: A.f has 61 lines, at most 60", "x: g has 7 parameters, at most 6"]
    assert list(too_large("x", "\n" * 351)) == ["x: 351 lines, at most 350"]
    for hidden in ("import_module('debzero.cli')", "importlib.import_module(f'debzero.{x}')", "__import__(x)",
                   "import_module('.x', __package__)"):
        assert len(list(hidden_imports("x", hidden))) == 1, hidden
    assert not list(hidden_imports("x", "import_module('deepspeed.comm.torch')"))
    assert strings('"""a"""\ndef f():\n    """b"""\n    return f"c {f} d"\n').split("\n") == ["c ", " d"]
    shown = "It was mended\nand goes\non from step 3, without a word. Recommended."
    assert stumbles({"x": shown}) == ["x: mended (write: fix)", "x: without a word (write: silently)",
                                      "x: goes on from (write: resumes from)"]
