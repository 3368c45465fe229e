"""Prove that a DeepSpeed wheel is the one that was asked for, or (--load) that the installed one works on this host.

A wheel built on a machine without a GPU can silently carry the wrong accelerator, miss an operator, or hold machine
code for the builder's own processor alone. Every problem is printed; the exit code is 1 if there is one.
"""

import argparse
import importlib.util
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path


def module(name, path):
    """The module in one file, without importing the packages it lies in."""
    spec = importlib.util.spec_from_file_location(name, path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def build_problems(folder, args):
    """What the wheel says of itself against what was asked for."""
    built = module("built", folder / "deepspeed" / "git_version_info_installed.py")
    if built.accelerator_name != args.accelerator:
        yield f"the wheel is built for accelerator {built.accelerator_name!r}, wanted {args.accelerator!r}"
    for key, wanted in (("version", args.torch), ("cuda_version", args.cuda)):
        if not wanted.startswith(built.torch_info[key]):
            yield f"the wheel is built with {key} {built.torch_info[key]}, wanted {wanted}"
    for op in args.ops:
        if not built.installed_ops.get(op):
            yield f"operator {op} is not in the wheel"


def disassembly_problems(folder):
    """Machine code beyond AVX2: the 512-bit registers are named zmm."""
    libraries = sorted(folder.rglob("*.so"))
    if not libraries:
        yield "the wheel holds no compiled operator at all"
    for library in libraries:
        code = subprocess.run(["objdump", "-d", str(library)], stdout=subprocess.PIPE, check=True).stdout
        if b"%zmm" in code:
            yield f"{library.name} holds AVX-512 code and would die on processors without it"


def load_problems(folder, ops):
    """Operators of the installed DeepSpeed that do not load here, or would be compiled at the first use."""
    import torch  # noqa: F401 - brings the libraries that the operators are linked with

    for op in ops:
        library = next((folder / "deepspeed" / "ops").rglob(f"{op}_op.*.so"), None)
        if library is None:
            yield f"operator {op} is not installed"
            continue
        try:
            module(f"{op}_op", library)
        except ImportError as error:
            yield f"operator {op} does not load: {error}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", nargs="?")
    parser.add_argument("--load", nargs="+", default=[])
    parser.add_argument("--ops", nargs="+", default=[])
    for option in ("--accelerator", "--torch", "--cuda"):
        parser.add_argument(option, default="")
    args = parser.parse_args()
    if args.load:
        problems = list(load_problems(Path(sysconfig.get_path("platlib")), args.load))
    else:
        with tempfile.TemporaryDirectory() as unpacked:
            zipfile.ZipFile(args.wheel).extractall(unpacked)
            problems = [*build_problems(Path(unpacked), args), *disassembly_problems(Path(unpacked))]
    print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
