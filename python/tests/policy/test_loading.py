"""Nothing that is loaded may run: every loader is called with the argument that forbids it."""
from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from checkout import files, refuse

# Loaders, and what each call must be given.
LOADERS = {"from_pretrained": "no_code()", "from_config": "no_code()", "load_dataset": "no_code()",
           "snapshot_download": "allow_patterns=patterns"}
# What torch sends as pickle, and where whoever reaches a port becomes a rank; and the files that may nevertheless.
BETWEEN_RANKS = {**dict.fromkeys(("broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list",
                                  "send_object_list", "recv_object_list", "TCPStore", "elastic_launch",
                                  "launch_agent", "rpc"), ()),
                 "init_process_group": ("python/src/debzero/train/rendezvous.py", "python/src/debzero/doctor/child.py",
                                        "python/benchmarks/article.py",
                                        "python/benchmarks/contenders.py")}
NEVER = {"load_from_disk", "read_pickle", "trust_remote_code=True", "use_safetensors=False", "allow_pickle=True"}


def unsafe(name: str, source: str) -> Iterator[str]:
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        loader = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        given = {f"{word.arg}={ast.unparse(word.value)}" if word.arg else ast.unparse(word.value)
                 for word in call.keywords}
        if loader in LOADERS and LOADERS[loader] not in given:
            yield f"{name}:{call.lineno}: {loader} without {LOADERS[loader]}"
        if loader == "from_pretrained" and ast.unparse(call.func).startswith("auto.") \
                and "use_safetensors=True" not in given:
            yield f"{name}:{call.lineno}: weights that may be a pickle"
        for word in NEVER & {loader, *given}:
            yield f"{name}:{call.lineno}: {word}"


def test_no_code_means_no():
    import transformers.dynamic_module_utils as transformers_code

    from debzero.data import hub
    from debzero.model import folder

    assert folder.no_code() == {"trust_remote_code": False} and transformers_code.TIME_OUT_REMOTE_CODE == 0
    assert hub.no_code() in ({}, {"trust_remote_code": False})


def test_no_loader_may_run_code():
    refuse(line for name, source in files("python/src/*.py", "python/benchmarks/*.py").items()
           for line in unsafe(name, source))


@pytest.mark.parametrize("source", [
    "AutoConfig.from_pretrained(x)", "AutoConfig.from_pretrained(x, trust_remote_code=None)",
    "auto.from_pretrained(x, **no_code())", "load_dataset('csv')", "snapshot_download(x)",
    "np.load(x, allow_pickle=True)"])
def test_a_call_that_may_run_code_is_seen(source):
    assert list(unsafe("x.py", source))


def open_to_others(name: str, source: str) -> Iterator[str]:
    """The lines that use or import a name of BETWEEN_RANKS, under whatever other name."""
    for node in ast.walk(ast.parse(source)):
        # attr, id, name, module and value: of `x.word`, `word`, `import a.word`, `from a.word import` and "word"
        named = (getattr(node, field, None) for field in ("attr", "id", "name", "module", "value"))
        for word in {word for text in named if isinstance(text, str) for word in text.split(".")}:
            if word in BETWEEN_RANKS and name not in BETWEEN_RANKS[word]:
                yield f"{name}:{getattr(node, 'lineno', 0)}: {word}"


def test_ranks_exchange_nothing_that_may_run():
    refuse(line for name, source in files("python/src/*.py", "python/benchmarks/*.py").items()
           for line in open_to_others(name, source))


@pytest.mark.parametrize("source", [
    "dist.broadcast_object_list([x], 0)", "from torch.distributed import all_gather_object as gather",
    "from torch.distributed.rpc import rpc_sync", "getattr(dist, 'gather_object')", "dist.init_process_group('gloo')",
    "import torch.distributed.rpc", "store = dist.TCPStore"])
def test_an_exchange_that_may_run_code_is_seen(source):
    assert list(open_to_others("x.py", source))
