"""`zero.favour: speed`, the default: check, plan and train agree on where DeepSpeed's buffers are for speed."""
from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from debzero.check import checks, operators
from debzero.cli import main
from debzero.deepspeed_json import releases
from debzero.plan import largest_micro, table
from debzero.plan.hardware import Hardware
from debzero.resolve.host import HostGpus
from debzero.run.folder import RunFolder
from debzero.train import memory_retry
from debzero.train.hosts import Hosts

ZERO = {"stage": 3, "engine": "deepspeed"}


@pytest.fixture
def gpus(monkeypatch):
    """A host with two GPUs; call it with the memory of each, in GiB."""
    def of(memory):
        hardware = Hardware(2, int(memory * 2**30), 2**40, 0, True, "this host's")
        monkeypatch.setattr(checks, "this_host", lambda: HostGpus(2, True))
        monkeypatch.setattr(operators, "unavailable", lambda *_: "")
        for module in (largest_micro, table):
            monkeypatch.setattr(module, "find_hardware", lambda *_: (hardware, []))

    return of


@pytest.mark.parametrize(("memory", "favour", "says"), [
    (40, "speed", "for speed"), (1.5, "memory", "would leave less than 10% of the GPU's memory free")])
def test_check_plan_and_train_agree(bench, gpus, capsys, memory, favour, says):
    gpus(memory)
    path = bench.job(zero=ZERO)
    assert main(["check", str(path), "--json"]) == 0
    assert says in json.loads(capsys.readouterr().out)["buffers"]
    assert main(["check", str(path)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if says in line] == ["buffers"]
    assert main(["plan", str(path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["choices"]
    own = next(row for row in rows if (row["stage"], row["offload_optimizer"]) == (3, "none"))
    assert own["favour"] == favour and own["largest_micro_batch"] == 16
    assert main(["plan", str(path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert ("would leave less than 10% of the GPU's memory free: ZeRO-1" in printed) == (favour == "memory")
    resolved = checks.check(path)
    started = memory_retry.at_start(resolved, path, RunFolder(resolved.job.output))
    assert started.job.zero.favour == favour
    assert started.fingerprint == resolved.fingerprint, "a run continues with the other buffers"


@pytest.mark.parametrize("zero", [{"stage": "none"}, {"stage": 2, "engine": "native"},
                                  {**ZERO, "favour": "memory"}])
def test_nothing_is_said_of_buffers_that_nobody_asked_for(bench, gpus, capsys, zero):
    gpus(1.5)
    assert main(["check", str(bench.job(zero=zero)), "--json"]) == 0
    assert "buffers" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("torch", "zero", "stage"), [
    ("2.3.1", {"stage": 2}, "ZeRO stage 2, DeepSpeed"), ("2.11.0", {"stage": 2}, "ZeRO stage 2, native engine"),
    ("2.11.0", {"stage": 2, "bucket": 10**6}, "ZeRO stage 2, DeepSpeed"), ("2.11.0", {"stage": "none"}, "plain DDP"),
    ("2.3.1", {"stage": 2, "engine": "native"}, "ZeRO stage 2, native engine")])
def test_check_says_which_engine_trains(bench, gpus, monkeypatch, capsys, torch, zero, stage):
    gpus(40)
    here = releases.here()
    monkeypatch.setattr(releases, "here", lambda: here._replace(torch=torch))
    assert main(["check", str(bench.job(zero=zero)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stage"] == stage


@pytest.mark.parametrize(("job", "given", "key"), [
    ({"ranks": 4}, [], "ranks"), ({"ranks": 2}, ["--ranks", "4"], "--ranks"), ({"ranks": 2}, [], "")])
def test_check_warns_of_ranks_that_share_gpus(bench, gpus, capsys, job, given, key):
    gpus(40)
    assert main(["check", str(bench.job(train__global_batch=32, zero=ZERO, **job)), *given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    shared = [warning for warning in found["problems"] if "4 ranks share 2 GPUs" in warning["reason"]]
    assert [warning["key"] for warning in shared] == [key] * bool(key)
    assert all(warning["fix"] == f"use 2, or leave {key} out" for warning in shared)


def test_a_host_without_gpus_has_the_small_buffers_as_ever(bench, capsys):
    path = bench.job(zero=ZERO)
    resolved = checks.check(path)
    assert resolved.uses_deepspeed and resolved.job.zero.favour == "memory"
    assert memory_retry.at_start(resolved, path, RunFolder(resolved.job.output)) is resolved
    assert main(["check", str(path), "--json"]) == 0
    assert "buffers" not in json.loads(capsys.readouterr().out)


def test_hosts_have_buffers_for_speed_where_all_have_room(bench, gpus):
    gpus(40)
    own = checks.check(bench.job(zero=ZERO))
    for theirs, micro, agreed in (("speed", 8, ("speed", 8)), ("memory", 4, ("memory", 4))):
        hosts = SimpleNamespace(_gather=lambda value, theirs=theirs, micro=micro: {
            "gpu1": value, "gpu2": {"favour": theirs, "micro_batch": micro}})
        found = Hosts.agree_start(hosts, own)
        assert (found.job.zero.favour, found.batch.micro) == agreed
