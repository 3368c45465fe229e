"""One fact, one place: versions and paths are typed in stack.yml and derived everywhere else."""
from __future__ import annotations

import ast
import re
from hashlib import sha256
from importlib.metadata import distributions
from importlib.util import find_spec

from checkout import ROOT, files, hits, refuse, stack, without_comments

HOMES = ("stack.yml", "*.lock", "*.md", "debian/changelog")
# Where a path of stack.yml may be typed: texts that people read, job files, and tests, which look from outside.
SHOWN = ("stack.yml", "*.md", "debian/*.README.Debian", "debian/changelog", "debian/jobs/*.yml",
         "roles/*/meta/argument_specs.yml", "*/tests/*", "molecule/*")
TYPED = {
    "debian/debzero.postrm": "runs when the package and its stack.yml are gone",
    "debian/debzero.postinst": "where the jobs of one release were",
    "debian/debzero.maintscript": "where the jobs of one release were",
    "python/src/debzero/run/command.py": "examples in --help",
    "python/src/debzero/bench/command.py": "examples in --help",
    "python/src/debzero/base/command_line.py": "examples in --help",
    "python/src/debzero/job/schema.py": "examples in messages",
    "debian/job.schema.json": "written from job/schema.py by make docs",
}
SOURCE = r"://.*|--(?:extra-)?index-url.*|--find-links.*"
# What may use what a host that only trains does not have.
INFERENCE = r"/debzero/(export/|predict/engine_(onnx|tensorrt)\.py$)"
TENSORRT = "python/src/tensorrt_worker.py"  # runs in an environment of its own
PIN_WITHOUT_HASH = r"^\w.*==.*$(?!\n    --hash=sha256:)"


def exactly(version):
    """A pattern for this version number that neither a longer one nor a later patch matches."""
    return rf"(?<![\d.]){re.escape(version)}(?!\.?\d)"


def pins(values):
    """{pattern: why} of all that would be a second home of a pin, derived spellings too."""
    cuda, python = values["cuda"], values["python"]
    numbers = [exactly(values[key]) for key in ("torch", "deepspeed", "tensorrt", "cudnn", "cuda", "python")]
    return [*numbers, values["deepspeed_sha256"],
            rf"\bcu{cuda.replace('.', '')}\b", rf"(?<!\d){cuda.replace('.', '-')}(?![\d-])",
            rf"\b(cp|py){python.replace('.', '')}\b"]


def typed_pins(values, texts):
    code = {name: without_comments(text) for name, text in texts.items()}
    return [hit for pattern in pins(values) for hit in hits(pattern, code)]


def typed_paths(values, texts):
    # /etc/debzero is not typed in /etc/debzero-x; the longest path is named, so each is reported once.
    paths = sorted((value for value in values.values() if str(value).startswith("/")), key=len, reverse=True)
    pattern = rf"(?:{'|'.join(map(re.escape, paths))})(?![\w-])"
    return hits(pattern, {name: without_comments(text) for name, text in texts.items()})


def locked(text):
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE))


def imported(source):
    """Top-level names of the modules that a Python source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]


def in_the_standard_library(module):
    spec = find_spec(module)
    return spec is not None and "-packages" not in (spec.origin or "")


def test_pins_are_typed_in_stack_yml_alone():
    # Linters read no stack.yml; the next test compares. What was measured are figures that may look like a pin, and the
    # ledger says which versions were reviewed: test_supply_chain compares.
    refuse(typed_pins(stack(), files("*", without=(*HOMES, "docs/benchmarks/*.json", "docs/security/*.yml",
                                                   "debian/sbom.cdx.json", "python/pyproject.toml"))))


def test_the_linters_check_for_the_pinned_python():
    text, python = (ROOT / "python/pyproject.toml").read_text(), stack()["python"]
    assert re.findall(r'^target-version = "py(\d+)"', text, re.MULTILINE) == [python.replace(".", "")]
    assert re.findall(r'^python_version = "([\d.]+)"', text, re.MULTILINE) == [python]


def test_paths_are_typed_in_stack_yml_alone():
    refuse(typed_paths(stack(), files("*", without=(*SHOWN, *TYPED))))


def test_no_exception_outlives_its_reason():
    refuse(name for name in TYPED if not typed_paths(stack(), files(name)))


def test_the_lock_holds_the_pinned_torch_and_no_deepspeed():
    versions = locked((ROOT / "python/requirements.lock").read_text())
    assert versions["torch"] == stack()["torch"]
    assert "deepspeed" not in versions, "its wheel is built by the role deepspeed_wheel"


def test_the_environment_s_package_has_another_version_for_other_locks():
    locks = b"".join((ROOT / f"python/requirements{part}.lock").read_bytes() for part in ("", "-inference"))
    number, digest = stack()["runtime"].split("+")
    assert number.isdigit()
    assert digest == sha256(locks).hexdigest()[:8], "`make lock` raises it"


def test_the_locks_of_the_test_environment_agree():
    runtime, tests, inference, tensorrt = (locked((ROOT / f"python/requirements{part}.lock").read_text())
                                           for part in ("", "-test", "-inference", "-tensorrt"))
    shared = runtime.keys() & tests.keys()
    assert shared
    refuse(f"{name}: {runtime[name]} and {tests[name]}" for name in shared if runtime[name] != tests[name])
    assert tensorrt["tensorrt"] == stack()["tensorrt"]
    refuse(f"{name}: {runtime[name]} and {tensorrt[name]}" for name in runtime.keys() & tensorrt.keys()
           if runtime[name] != tensorrt[name] and name != "nvidia-cudnn-cu11")
    refuse(f"{name} is in another lock already" for name in inference.keys() & {*runtime, *tests})
    gpu = locked((ROOT / "python/requirements-inference-gpu.lock").read_text())
    assert {name.replace("onnxruntime-gpu", "onnxruntime"): version for name, version in gpu.items()} == inference


def test_every_lock_has_an_input_and_hashes_alone():
    locks = files("*.lock")
    assert len(locks) >= 4
    refuse(name for name in locks if not (ROOT / name).with_suffix(".in").is_file())
    for name, text in locks.items():
        assert locked(text)
        refuse(hits(PIN_WITHOUT_HASH, {name: text}) + hits(SOURCE, {name: text}))


OF_DEBIAN = {("jsonschema", "python/src/debzero/check/shape.py")}  # runs in Debian's Python; the package depends on it


def test_everything_that_the_trainer_imports_is_locked():
    """Each module belongs to a package of the lock, by what the environment of these tests has installed."""
    versions = locked((ROOT / "python/requirements.lock").read_text())
    inference = locked((ROOT / "python/requirements-inference.lock").read_text())
    owners: dict[str, set[str]] = {}
    for package in distributions():
        for module in {path.parts[0].partition(".")[0] for path in package.files or []}:
            owners.setdefault(module, set()).add(re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower())
    wanted = {(name, file) for file, text in files("python/src/*.py").items() for name in imported(text)
              if file != TENSORRT and name not in ("debzero", "deepspeed") and not in_the_standard_library(name)}
    assert {"torch", "yaml", "onnxruntime"} <= {name for name, _ in wanted}
    assert wanted >= OF_DEBIAN and all(f"python3-{name}," in files("debian/control")["debian/control"]
                                       for name, _ in OF_DEBIAN)
    refuse(f"{file} imports {name}, which no package of python/requirements.lock provides"
           for name, file in wanted - OF_DEBIAN if not owners.get(name, set()) & versions.keys()
           and not (re.search(INFERENCE, file) and owners.get(name, set()) & inference.keys()))


def test_the_worker_of_tensorrt_needs_what_its_lock_has():
    modules = {"tensorrt": "tensorrt", "cuda": "cuda-bindings", "numpy": "numpy"}
    locks = locked((ROOT / "python/requirements-tensorrt.lock").read_text())
    wanted = {name for name in imported((ROOT / TENSORRT).read_text()) if not in_the_standard_library(name)}
    assert wanted - {"debzero"} == {*modules} and {*modules.values()} <= locks.keys()


def test_the_checks_see_what_is_wrong():
    sample = {"python": "9.7", "cuda": "55.6", "cudnn": "9.4.1.5", "torch": "7.8.9", "deepspeed": "5.6.7",
              "tensorrt": "7.7.7.7"}
    sample.update({"deepspeed_sha256": "ab" * 32, "venv": "/a/b/c"})
    code = "pip install torch==7.8.9\n# torch 7.8.9\ncu556 x-55-6 cp97 17.8.9 7.8.91 55.60 7.8.9.1\nurl=55.6.\n"
    assert typed_pins(sample, {"x": code}) == ["x:1: 7.8.9", "x:4: 55.6", "x:3: cu556", "x:3: 55-6", "x:3: cp97"]
    code = "run /a/b/c/bin\n# /a/b\n/a/b-x /a/b/d"
    assert typed_paths({"prefix": "/a/b", "venv": "/a/b/c"}, {"x": code}) == ["x:1: /a/b/c", "x:3: /a/b"]
    assert in_the_standard_library("os")
    assert not in_the_standard_library("yaml")
    assert not in_the_standard_library("nowhere")
    assert hits(PIN_WITHOUT_HASH, {"x": "a==1 \\\n    --hash=sha256:0\nb==1\n"}) == ["x:3: b==1"]
    assert set(imported("import os.path\ndef f():\n    from yaml import load\nfrom . import g")) == {"os", "yaml"}
