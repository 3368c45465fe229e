"""How ranks are divided into copies of the model and parts of it, and what does not go with that."""
import pytest
from support import JOB, changed

from debzero.base.errors import InputError
from debzero.deepspeed_json import releases
from debzero.job.schema import Job
from debzero.resolve.host import HostGpus
from debzero.resolve.layout import Layout
from debzero.resolve.resolve import resolve
from debzero.resolve.sharding import Sharding


def resolved(given=None, gpus=0, config=None, hosts=1, **changes):
    job = Job.model_validate(changed(JOB, {key.replace("__", "."): value for key, value in changes.items()}))
    return resolve(job, HostGpus(gpus, False), given, "job.yml", config, hosts)


def refused(*given, **changes):
    """{key: reason and fix} of what is wrong with a job."""
    with pytest.raises(InputError) as error:
        resolved(*given, **changes)
    return {problem.key: f"{problem.reason}; {problem.fix}" for problem in error.value.problems}


def test_every_rank_has_a_place_of_its_own():
    layout = Layout(3, 2, 2)
    assert [layout.rank(layout.place(rank)) for rank in range(12)] == list(range(12))
    assert list(layout.groups("tensor")) == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)]
    assert list(layout.groups("data")) == [(0, 2, 4), (1, 3, 5), (6, 8, 10), (7, 9, 11)]
    assert list(layout.groups("stage")) == [(0, 6), (1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]
    assert [layout.dropout_stream(rank) for rank in range(12)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize(("ranks", "gpus", "expected"), [("auto", 0, 2), ("auto", 4, 4), (2, 4, 2), (6, 0, 6)])
def test_the_batch_is_divided_among_copies_of_the_model(ranks, gpus, expected):
    found = resolved(gpus=gpus, ranks=ranks, train__global_batch=24, train__micro_batch=2, parallel__tensor=2)
    assert found.layout.ranks == expected and found.batch.ranks == expected // 2
    assert "each a group of 2" in found.batch_text
    assert "group" not in resolved().batch_text


def test_what_does_not_go_with_a_division_is_refused():
    assert "3 ranks cannot be divided into groups of 2; use 2 or 4" in refused(3, parallel__tensor=2)["parallel"]
    assert "use none or 1" in refused(2, parallel__tensor=2, zero__stage=2)["zero.stage"]
    by_deepspeed = {"zero__stage": 1, "zero__engine": "deepspeed"}
    assert "DeepSpeed does not train divided models" in refused(2, parallel__tensor=2, **by_deepspeed)["zero.engine"]
    offload = {"zero__stage": 1, "zero__engine": "native", "zero__offload_optimizer": "cpu"}
    assert "offloads nothing" in refused(2, parallel__tensor=2, **offload)["zero.offload_optimizer"]
    offload.pop("zero__engine")  # debzero itself trains, though nobody has said so
    assert "offloads nothing" in refused(2, parallel__tensor=2, **offload)["zero.offload_optimizer"]
    everything = {"zero__stage": 3, "zero__offload_optimizer": "cpu", "zero__offload_param": "cpu"}
    assert {"zero.stage", "zero.offload_optimizer", "zero.offload_param"} <= {
        *refused(2, parallel__tensor=2, **everything)}, "all at once"
    writes = {"task": "text-to-text", "data__answers": "text"}
    assert "cannot write the texts" in refused(2, parallel__pipeline=2, **writes)["parallel.pipeline"]
    assert "no DeepSpeed JSON" in refused(2, 0, {"gradient_clipping": 1.0}, parallel__tensor=2)["deepspeed"]


def test_a_divided_model_is_on_one_host():
    assert "on one host, not on 2" in refused(2, 0, None, 2, parallel__tensor=2)["parallel"]


@pytest.mark.parametrize(("total", "stages", "micro"), [(64, 2, 8), (64, 4, 4), (8, 2, 1), (6, 2, 1), (1024, 2, 32)])
def test_a_pipeline_gets_enough_micro_batches(total, stages, micro):
    batch = resolved(stages, train__global_batch=total, train__micro_batch="auto", parallel__pipeline=stages).batch
    assert (batch.micro, batch.total) == (micro, total)


@pytest.mark.parametrize(("gpus", "torch", "native"), [
    (2, "2.4.1+cu121", True), (2, "2.3.1", False), (0, "2.11.0", False), (1, "2.11.0", False)])
def test_the_native_engine_trains_where_it_can_record_steps(gpus, torch, native, monkeypatch):
    monkeypatch.setattr(releases, "here", lambda: releases.Releases("0.19.8", torch))
    assert {stage: resolved(2, gpus, zero__stage=stage).is_native for stage in ("none", 1, 2, 3)} == {
        "none": False, 1: native, 2: native, 3: native}
    assert not resolved(2, gpus, zero__stage=2, zero__engine="deepspeed").is_native
    assert not resolved(2, gpus, zero__stage=2, zero__offload_optimizer="cpu").is_native
    assert resolved(2, gpus, zero__stage=2, zero__engine="native").is_native
    assert resolved(2, gpus, zero__stage=1, parallel__tensor=2).is_native, "DeepSpeed trains no divided model"


def test_an_engine_that_has_nothing_to_carry_out_is_refused():
    for engine in ("native", "deepspeed"):
        assert "set zero.stage: 2" in refused(2, zero__stage="none", zero__engine=engine)["zero.engine"]
        divided = refused(2, zero__stage="none", zero__engine=engine, parallel__tensor=2)
        assert "zero.stage: 2" not in divided["zero.engine"], "which a divided model cannot have"
        searched = resolved(2, zero__stage=2, zero__engine=engine).job
        alone = searched.model_copy(update={"zero": Sharding(0).in_section(searched.zero)})
        assert resolve(alone, HostGpus(0, False), 2, "job.yml", None).stage == 0, "what tune and bench compare it with"
    assert resolved(2, config={"gradient_clipping": 1.0}, zero__stage="none", zero__engine="deepspeed").uses_deepspeed


def test_a_run_is_the_same_however_its_model_is_divided():
    plain = resolved(2).fingerprint
    native = {"zero__stage": 1, "zero__engine": "native"}
    assert resolved(2, parallel__tensor=2).fingerprint == plain
    assert resolved(4, parallel__tensor=2, **native).fingerprint == plain
    assert resolved(2, **native).fingerprint != plain, "the engine for undivided models keeps shards"
