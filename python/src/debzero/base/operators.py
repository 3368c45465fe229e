"""DeepSpeed's operators on this host: which are built already, and whether the rest can be compiled when a job first
needs them. DeepSpeed and torch are read, not imported."""
from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple, Optional

DEFAULT = "fused_adam"  # which AdamW is in a job with DeepSpeed on GPUs
RUNTIME = "run `ansible-playbook playbooks/runtime.yml` in a checkout of debzero"
# What the sources of cpu_adam need of C++17, and those of async_io of libaio.
CPP17 = "#include <type_traits>\nstatic_assert(std::is_same_v<int, int>, \"\");\n"
LIBAIO = "#include <libaio.h>\nint main() { return io_submit(nullptr, 0, nullptr); }\n"
PROBE_SECONDS = 30


class Wheel(NamedTuple):
    """What an installed DeepSpeed says of its build."""

    version: str
    operators: list[str]
    accelerator: str
    torch: str
    cuda: str


def _folder() -> Optional[Path]:
    package = importlib.util.find_spec("deepspeed")
    return Path(next(iter(package.submodule_search_locations or []))) if package else None


def wheel() -> Optional[Wheel]:
    """Read, not imported: on a GPU host `import deepspeed` already needs a CUDA compiler. None: it is not installed."""
    folder = _folder()
    if folder is None:
        return None
    file = folder / "git_version_info_installed.py"
    body = ast.parse(file.read_text()).body if file.is_file() else []
    facts = {a.targets[0].id: ast.literal_eval(a.value) for a in body
             if isinstance(a, ast.Assign) and isinstance(a.targets[0], ast.Name)}
    torch = facts.get("torch_info", {})
    operators = sorted(name for name, built in facts.get("installed_ops", {}).items() if built)
    return Wheel(facts.get("version", "unknown"), operators,
                 facts.get("accelerator_name", ""), torch.get("version", ""), torch.get("cuda_version", ""))


def unavailable(operator: str, on_gpus: bool, torch: str = "") -> str:
    """Why a job cannot have this operator here: it is neither built nor can it be compiled. Empty where it can.

    DeepSpeed takes built operators only where they were built for its accelerator, and else compiles them. Its builders
    for GPUs ask for C++17. Those for processors (op_builder/cpu) leave the standard to torch, which takes
    C++14 before 2.0; before 2.1, that of async_io removes a flag which it never set, and fails. The role
    deepspeed_wheel corrects the builders of its wheel. `torch`: its version, to be found out where it is empty.
    """
    built = wheel()
    if built is None or (operator in built.operators and built.accelerator == ("cuda" if on_gpus else "cpu")):
        return ""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        return f"{operator} is not prebuilt, and there is no C++ compiler ({compiler}) to compile it"
    if shutil.which("ninja") is None:
        return f"{operator} is not prebuilt, and there is no ninja to compile it"
    if operator == "async_io" and (why := _unreadable_flags() or _refusal(compiler, LIBAIO, "-laio")):
        return f"{operator} is not prebuilt, and what needs libaio (libaio-dev) does not compile here ({why})"
    torch = torch or importlib.metadata.version("torch")
    numbers = tuple(map(int, re.findall(r"\d+", torch)[:2]))
    if on_gpus or _asks_for_cpp17():
        return ""
    failed = (f"{operator} is not prebuilt, and DeepSpeed {built.version} cannot compile it for processors with torch "
              f"{torch}")
    if operator == "async_io":
        return failed if numbers < (2, 1) else ""
    return (f"{failed}, which takes C++14 where it needs C++17"
            if numbers < (2, 0) and _refusal(compiler, CPP17, "-std=c++14", "-fsyntax-only") else "")


def _asks_for_cpp17() -> bool:
    """Whether DeepSpeed's builder for processors does."""
    folder = _folder()
    file = folder / "ops/op_builder/cpu/builder.py" if folder else None
    return file is not None and file.is_file() and "-std=c++17" in file.read_text()


def _unreadable_flags() -> str:
    """Why DeepSpeed, which looks for libaio with these, would not find it. What it compiles then gets neither."""
    for variable in ("CFLAGS", "LDFLAGS"):
        try:
            shlex.split(os.environ.get(variable, ""))
        except ValueError as error:
            return f"{variable} cannot be read: {error}"
    return ""


def _refusal(compiler: str, source: str, *arguments: str) -> str:
    """What the compiler has against this, empty where it takes it. It is asked itself: it may be a wrapper that takes
    C++17 even where it is asked for C++14."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([compiler, "-x", "c++", "-", "-o", f"{folder}/probe", *arguments], input=source,
                                  text=True, errors="replace", capture_output=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"{compiler}: no answer within {PROBE_SECONDS} s"
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    causes = [line for line in lines if "error:" in line or "cannot find" in line]  # the latter is the linker's
    return next(iter(causes + lines), f"{compiler}: no reason given")
