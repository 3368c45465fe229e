"""Check that a DeepSpeed wheel is the requested one, or (--load) that the installed one works on this host.

A wheel built on a machine without a GPU can silently carry the wrong accelerator, miss an operator or an architecture,
or hold machine code for the builder's own processor alone. Every problem is printed; exit code 1 if there is one.
"""

import argparse
import ast
import importlib.util
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

FACTS = "deepspeed/git_version_info_installed.py"


def facts(archive):
    """What the wheel records of its build: the assignments in FACTS, read and not run."""
    body = ast.parse(archive.read(FACTS)).body
    return {a.targets[0].id: ast.literal_eval(a.value) for a in body if isinstance(a, ast.Assign)}


def build_problems(built, args):
    if built["accelerator_name"] != args.accelerator:
        yield f"the wheel is built for accelerator {built['accelerator_name']!r}, expected {args.accelerator!r}"
    for name, key, expected in (("torch", "version", args.torch), ("CUDA", "cuda_version", args.cuda)):
        if not expected.startswith(built["torch_info"][key]):
            yield f"the wheel is built with {name} {built['torch_info'][key]}, expected {expected}"
    has = {op for op, compiled in built["installed_ops"].items() if compiled}
    for op in sorted(has ^ set(args.ops)):
        yield f"operator {op} is {'in the wheel, but was not requested' if op in has else 'not in the wheel'}"


def printed(*command):
    return subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, check=True).stdout


def code_problems(folder, args):
    """Machine code: none beyond AVX2 (512-bit registers are named zmm), and some for each GPU architecture."""
    libraries = sorted(folder.rglob("*_op.*.so"))
    if len(libraries) != len(args.ops):
        yield f"the wheel holds {len(libraries)} compiled operators, expected {len(args.ops)}"
    wanted = {f"sm_{name.replace('.', '')}" for name in args.architectures}
    for library in libraries:
        if b"%zmm" in printed("objdump", "-d", library):
            yield f"{library.name} holds AVX-512 code and would crash on processors without it"
        # An operator without a CUDA section runs on the processor alone.
        if wanted and b".nv_fatbin" in printed("objdump", "-h", library):
            listed = printed("cuobjdump", "--list-elf", library)
            for missing in sorted(wanted - set(re.findall(r"sm_\d+", listed.decode()))):
                yield f"{library.name} holds no machine code for {missing}"


def load_problems(folder, ops):
    """Operators of the installed DeepSpeed that do not load here, or would be compiled at the first use."""
    import torch  # noqa: F401 - brings the libraries that the operators are linked with

    for op in ops:
        library = next((folder / "deepspeed" / "ops").rglob(f"{op}_op.*.so"), None)
        if library is None:
            yield f"operator {op} is not installed"
            continue
        try:
            # The file alone, not the packages around it.
            spec = importlib.util.spec_from_file_location(f"{op}_op", library)
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
        except ImportError as error:
            yield f"operator {op} does not load: {error}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", nargs="?")
    parser.add_argument("--load", nargs="+", default=[])
    for option in ("--ops", "--architectures"):
        parser.add_argument(option, nargs="+", default=[])
    for option in ("--accelerator", "--torch", "--cuda"):
        parser.add_argument(option, default="")
    parser.add_argument("--disassemble", action="store_true")
    args = parser.parse_args()
    if args.load:
        problems = list(load_problems(Path(sysconfig.get_path("platlib")), args.load))
    else:
        with zipfile.ZipFile(args.wheel) as archive, tempfile.TemporaryDirectory() as unpacked:
            problems = list(build_problems(facts(archive), args))
            if args.disassemble:
                archive.extractall(unpacked)
                problems += code_problems(Path(unpacked), args)
    print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
