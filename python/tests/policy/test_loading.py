"""Nothing that is loaded may run: every loader is called with the argument that forbids it."""
from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from checkout import files, refuse

# Loaders, and what each call must have. A mapping that is passed on may hold it: for releases that do not know it.
LOADERS = {"from_pretrained": "trust_remote_code", "from_config": "trust_remote_code",
           "load_dataset": "_no_code", "snapshot_download": "allow_patterns"}


def unsafe(name: str, source: str) -> Iterator[str]:
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        loader = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        wanted = LOADERS.get(loader)
        given = [f"{word.arg}={ast.unparse(word.value)}" if word.arg else ast.unparse(word.value)
                 for word in call.keywords]
        if wanted and not any(word.startswith((f"{wanted}=False", f"{wanted}=FILES", f"{wanted}()")) for word in given):
            yield f"{name}:{call.lineno}: {loader} without {wanted}"
        if loader == "from_pretrained" and ast.unparse(call.func).startswith("auto.") \
                and "use_safetensors=True" not in given:
            yield f"{name}:{call.lineno}: weights that may be a pickle"


def test_no_loader_may_run_code():
    refuse(line for name, source in files("python/src/*.py").items() for line in unsafe(name, source))


@pytest.mark.parametrize("source", [
    "AutoConfig.from_pretrained(x)", "AutoConfig.from_pretrained(x, trust_remote_code=None)",
    "auto.from_pretrained(x, trust_remote_code=False)", "load_dataset('csv')", "snapshot_download(x)"])
def test_a_call_that_may_run_code_is_seen(source):
    assert list(unsafe("x.py", source))
