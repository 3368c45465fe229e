"""The sizes of DeepSpeed's buffers that a job sets itself: where they apply, what they come to, and that plan counts
them."""
from dataclasses import replace

import pytest
from support import JOB, changed

from debzero.base.errors import InputError
from debzero.deepspeed_json import releases
from debzero.job.schema import Job
from debzero.measure.derive import derive
from debzero.plan.memory import predict
from debzero.plan.model_shapes import Shapes
from debzero.plan.planner import setting_of
from debzero.resolve import deepspeed_config
from debzero.resolve.host import HostGpus
from debzero.resolve.resolve import resolve
from debzero.resolve.sharding import Sharding

ALL = {"bucket": 10**6, "overlap": False, "live": 3 * 10**7, "prefetch": 0}
NEWEST, LOSING = releases.Releases("0.19.3", "2.11.0"), releases.Releases("0.16.9", "2.3.0")


@pytest.fixture(autouse=True)
def newest(monkeypatch):
    monkeypatch.setattr(releases, "here", lambda: NEWEST)


def resolved(zero, config=None, gpus=2, **changes):
    job = Job.model_validate(changed(JOB, {"zero": zero, "deepspeed": config and "/etc/ds.json", **changes}))
    return resolve(job, HostGpus(gpus, gpus > 0), 2, "job.yml", config)


def made(zero, config=None, gpus=2, **changes):
    return deepspeed_config.generate(resolved(zero, config, gpus, **changes), 64, 10)["zero_optimization"]


@pytest.mark.parametrize(("zero", "config", "changes", "reason", "fix"), [
    ({"stage": 3, "engine": "native"}, None, {}, "the native engine has no such buffers", "remove zero.engine"),
    ({}, None, {}, "stage none has no such buffers", "zero.stage: "),
    ({"stage": 1}, None, {"parallel.tensor": 2}, "divided models", "remove parallel"),
    ({"stage": 3}, {"zero_optimization": {
        "stage": 3, "allgather_bucket_size": 5, "overlap_comm": True, "stage3_max_reuse_distance": 7,
        "stage3_prefetch_bucket_size": 8}}, {}, "the DeepSpeed JSON sets zero_optimization.", "remove one")])
def test_each_size_is_refused_where_deepspeed_has_no_such_buffer(zero, config, changes, reason, fix):
    with pytest.raises(InputError) as caught:
        resolved({**zero, **ALL}, config, **changes)
    found = {p.key: p for p in caught.value.problems}
    assert set(found) == {f"zero.{key}" for key in ALL}
    assert all(reason in p.reason and fix in p.fix and p.file == "job.yml" for p in found.values())


@pytest.mark.parametrize("stage", [1, 2])
def test_only_stage_3_has_what_it_gathers_ahead_and_keeps(stage):
    with pytest.raises(InputError) as caught:
        resolved({"stage": stage, **ALL})
    assert {p.key: (p.reason, p.fix) for p in caught.value.problems} == {f"zero.{key}": (
        f"only stage 3 gathers parameters, not stage {stage}", "remove it, or set zero.stage: 3")
        for key in ("live", "prefetch")}


def test_overlapping_is_refused_where_the_release_does_it_wrong(monkeypatch):
    assert made({"stage": 2, "overlap": True})["overlap_comm"] is True
    for here, gpus, reason in ((LOSING, 2, "may lose gradients at stage 2 in DeepSpeed 0.16.9"), (LOSING, 0, ""),
                               (releases.Releases("0.19.2", "2.11.0"), 2, "NaN with compiled layers")):
        monkeypatch.setattr(releases, "here", lambda here=here: here)
        if not reason:
            assert made({"stage": 2, "overlap": True}, gpus=gpus)["overlap_comm"] is False, "there is no stream for it"
            continue
        with pytest.raises(InputError) as caught:
            resolved({"stage": 2, "overlap": True}, gpus=gpus)
        (problem,) = caught.value.problems
        assert problem.key == "zero.overlap" and reason in problem.reason
        assert made({"stage": 2, "overlap": False})["overlap_comm"] is False


@pytest.mark.parametrize("favour", ["memory", "speed"])
def test_what_is_set_overrules_what_favour_gives_and_no_more(favour):
    given = made({"stage": 3, "favour": favour, **ALL})
    assert {name: given[name] for name in (
        "reduce_bucket_size", "allgather_bucket_size", "overlap_comm", "stage3_max_live_parameters",
        "stage3_max_reuse_distance", "stage3_prefetch_bucket_size")} == {
        "reduce_bucket_size": 10**6, "allgather_bucket_size": 10**6, "overlap_comm": False,
        "stage3_max_live_parameters": 3 * 10**7, "stage3_max_reuse_distance": 3 * 10**7,
        "stage3_prefetch_bucket_size": 0}
    threshold = "stage3_param_persistence_threshold"
    assert given[threshold] == made({"stage": 3, "favour": favour, "engine": "deepspeed"})[threshold]
    assert made({"stage": 2, "favour": favour, "bucket": 7})["reduce_bucket_size"] == 7
    left = {"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "stage3_max_live_parameters": 5}}
    mixed = made({"stage": 3, "favour": favour, "bucket": 7}, left)
    assert (mixed["reduce_bucket_size"], mixed["stage3_max_live_parameters"]) == (7, 5)


def test_deepspeed_trains_what_sizes_its_buffers(monkeypatch):
    from debzero.resolve import native

    monkeypatch.setattr(native, "pays", lambda: True)
    assert resolved({"stage": 2}).is_native and resolved({"stage": 2, "bucket": 7}).uses_deepspeed


def test_other_stages_of_a_bench_leave_out_what_they_do_not_have():
    own = resolved({"stage": 3, **ALL})
    for stage, kept in ((0, set()), (1, {"bucket", "overlap"}), (3, set(ALL))):
        zero = derive(own, Sharding(stage), "out", 1, 1).zero
        assert {key for key in ALL if getattr(zero, key) is not None} == kept
        resolve(own.job.model_copy(update={"zero": zero}), HostGpus(2, True), 2, "job.yml", None)


def test_the_plan_counts_them():
    def peak(stage, **sizes):
        job = resolved({"stage": stage, "favour": "memory", **sizes}, **{"model.num_hidden_layers": 12})
        shapes = Shapes(job.job, "job.yml", None)
        return predict(shapes.counts, shapes.curve("fp32", False), replace(setting_of(job, 32), ranks=2)).peak_bytes

    assert peak(2, bucket=10**8) - peak(2, bucket=10**7) > 2 * 9 * 10**7
    assert peak(3, live=10**6) > peak(3, live=1)
    assert peak(2, bucket=10**8, overlap=True) > peak(2, bucket=10**8, overlap=False)
