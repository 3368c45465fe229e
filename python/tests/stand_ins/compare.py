"""Compare the stand-ins with the real TensorRT and cuda-bindings, in their environment: no GPU is needed.

The worker runs on the stand-ins alone in the tests, so a name that it uses is one of theirs. Each of those must be in
the real packages, of the same kind, and take the same parameters. Prints what differs; the exit code is then 1.
"""
import enum
import importlib.util
import inspect
import re
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Of the stand-ins' own.
OURS = {"in_half", "type_of", "is_held", "is_fp32", "error", "annotations", "HOST", "MAGIC", "OK", "OPERATORS"}


def stand_in(name, file):
    spec = importlib.util.spec_from_file_location(f"stand_in_{name}", HERE / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parameters(real):
    """What a function of the real packages takes, from its signature or the line that its bindings write about it; None
    where that says nothing."""
    try:
        return [name for name in inspect.signature(real).parameters if name != "self"]
    except (TypeError, ValueError):
        line = (real.__doc__ or "").strip().splitlines()[:1]
        given = re.match(r"\w+\((.*)\)( -> .*)?$", line[0]) if line else None
        if given is None:
            return None
        words = [part.split(":")[0].split("=")[0].split()[-1] for part in given[1].split(", ") if part]
        return [word for word in words if word != "self"]


def compared(where, ours, real):
    """(name, what differs or "") of all that a class or module of ours offers."""
    for name, value in vars(ours).items():
        if name in OURS or name.startswith("_") and name != "__init__" or inspect.ismodule(value):
            continue
        if getattr(value, "__module__", ours.__name__) not in (ours.__name__, ours.__module__ if isinstance(
                ours, type) else ours.__name__):
            continue  # imported
        path, there = f"{where}.{name}", getattr(real, name, None)
        if there is None:
            yield path, "does not exist"
        elif isinstance(value, type) and issubclass(value, enum.Enum):
            yield from ((f"{path}.{member}", "" if hasattr(there, member) else "does not exist")
                        for member in value.__members__)
        elif isinstance(value, type):
            yield from compared(path, value, there)
        elif not callable(value):
            yield path, "" if not callable(there) else "is a function"
        else:
            wanted = [each for each in inspect.signature(value).parameters if each != "self"]
            taken = parameters(there)
            if taken != ["args", "kwargs"]:  # the constructor of what no program makes itself
                yield f"{path}({', '.join(wanted)})", "" if taken is not None and taken[: len(wanted)] == wanted else (
                    f"takes {taken}")


def main():
    warnings.simplefilter("ignore")
    import tensorrt
    from cuda.bindings import runtime

    if str(HERE) in tensorrt.__file__:
        sys.exit("this is the stand-in itself: start it in the environment of the role tensorrt")
    ours = stand_in("tensorrt", "tensorrt/__init__.py")
    # The parser has its operators' names as strings; where one ends another, as Div ends FloorDiv, both are one.
    parser = Path(tensorrt.__file__).with_name("libnvonnxparser.so.8").read_bytes()
    operators = [(f"operator {name}", "" if f"{name}\0".encode() in parser else "is none of the parser's")
                 for name in sorted(ours.OPERATORS)]
    found = [*operators, *compared("tensorrt", ours, tensorrt),
             *compared("runtime", stand_in("runtime", "cuda/bindings/runtime.py"), runtime)]
    wrong = [(name, difference) for name, difference in found if difference]
    for name, difference in found:
        print(name, difference or "ok")
    print(f"TensorRT {tensorrt.__version__}: {len(found) - len(wrong)} names agree, {len(wrong)} differ")
    return 1 if wrong or len(found) < 60 else 0


if __name__ == "__main__":
    sys.exit(main())
