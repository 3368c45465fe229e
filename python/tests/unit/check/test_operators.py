"""Offload needs operators of DeepSpeed: without them a run ended in a traceback."""
import pytest

from debzero.base.errors import InputError
from debzero.check import checks, operators
from debzero.check.checks import check
from debzero.resolve.host import HostGpus


@pytest.mark.parametrize(("kind", "zero", "refused"), [
    ("Lion", {"stage": 1}, True), ("lamb", {"stage": "none"}, True), ("Adagrad", {"stage": "none"}, False),
    ("Adagrad", {"stage": 2, "offload_optimizer": "cpu"}, True)])
def test_an_optimizer_that_processors_lack_is_an_error(bench, monkeypatch, kind, zero, refused):
    monkeypatch.setattr(operators, "unavailable", lambda name, on_gpus: "")
    path = bench.job(zero=zero, deepspeed={"optimizer": {"type": kind, "params": {"lr": 1e-3}}})
    try:
        check(path)
    except InputError as error:
        (problem,) = error.problems
        assert refused and problem.key == "deepspeed.optimizer.type" and "for GPUs alone" in problem.reason
    else:
        assert not refused


@pytest.mark.parametrize(("zero", "kind", "missing"), [
    ({"stage": 2}, None, "fused_adam"), ({"stage": "none"}, "Lamb", "fused_lamb"), ({"stage": "none"}, None, ""),
    ({"stage": 2, "engine": "native"}, None, ""), ({"stage": 2, "offload_optimizer": "cpu"}, None, "cpu_adam")])
def test_a_gpus_optimizer_without_its_operator_is_an_error(bench, monkeypatch, zero, kind, missing):
    """`debzero train` says so before it starts; DeepSpeed would with a traceback, after the data was prepared."""
    monkeypatch.setattr(checks, "this_host", lambda: HostGpus(2, bf16=True))
    monkeypatch.setattr(operators, "unavailable", lambda name, on_gpus: f"{name} is missing")
    optimizer = {"optimizer": {"type": kind, "params": {"lr": 1e-3}}} if kind else None
    try:
        check(bench.job(zero=zero, deepspeed=optimizer))
    except InputError as error:
        assert [p.reason for p in error.problems] == [f"{missing} is missing"], error
    else:
        assert not missing


@pytest.mark.parametrize(("zero", "config", "keys"), [
    ({"stage": 2, "offload_optimizer": "cpu"}, None, ["zero.offload_optimizer"]),
    ({"stage": 3, "offload_optimizer": "nvme", "offload_param": "nvme", "nvme_path": "."}, None,
     ["zero.offload_optimizer", "zero.offload_param"]),
    ({"stage": 3, "offload_param": "cpu"}, None, []), ({"stage": 2}, None, []),
    ({}, {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
     ["deepspeed.zero_optimization.offload_optimizer.device"]),
    ({}, {"zero_optimization": {"stage": 2, "cpu_offload": True}}, ["deepspeed.zero_optimization.cpu_offload"]),
    ({"stage": 2, "offload_optimizer": "cpu"}, {"optimizer": {"type": "AdamW", "params": "auto"}},
     ["zero.offload_optimizer"]),
    ({"stage": 2, "offload_optimizer": "cpu"}, {"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}}, [])])
def test_offload_without_its_operator_is_an_error(bench, monkeypatch, zero, config, keys):
    monkeypatch.setattr(operators, "unavailable", lambda name, on_gpus: f"{name} is missing")
    path = bench.job(zero=zero, deepspeed=config)
    try:
        check(path)
    except InputError as error:
        missing = [p for p in error.problems if p.reason.endswith(" is missing")]
        assert [p.key for p in missing] == keys and all("playbooks/runtime.yml" in p.fix for p in missing)
    else:
        assert not keys
