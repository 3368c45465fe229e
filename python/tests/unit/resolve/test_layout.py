"""How ranks are divided into copies of the model and parts of it, and what does not go with that."""
import pytest
from support import JOB, changed

from debzero.base.errors import InputError
from debzero.job.schema import Job
from debzero.resolve.host import HostGpus
from debzero.resolve.layout import Layout
from debzero.resolve.resolve import resolve


def resolved(given=None, gpus=0, config=None, **changes):
    job = Job.model_validate(changed(JOB, {key.replace("__", "."): value for key, value in changes.items()}))
    return resolve(job, HostGpus(gpus, False), given, "job.yml", config)


def refused(*given, **changes):
    """{key: reason and fix} of what is wrong with a job."""
    with pytest.raises(InputError) as error:
        resolved(*given, **changes)
    return {problem.key: f"{problem.reason}; {problem.fix}" for problem in error.value.problems}


def test_every_rank_has_a_place_of_its_own():
    layout = Layout(3, 2)
    assert [layout.rank(layout.place(rank)) for rank in range(6)] == list(range(6))
    assert list(layout.groups("tensor")) == [(0, 1), (2, 3), (4, 5)]
    assert list(layout.groups("data")) == [(0, 2, 4), (1, 3, 5)]


@pytest.mark.parametrize(("ranks", "gpus", "expected"), [("auto", 0, 2), ("auto", 4, 4), (2, 4, 2), (6, 0, 6)])
def test_the_batch_is_divided_among_copies_of_the_model(ranks, gpus, expected):
    found = resolved(gpus=gpus, ranks=ranks, train__global_batch=24, train__micro_batch=2, parallel__tensor=2)
    assert found.layout.ranks == expected and found.batch.ranks == expected // 2
    assert "each a group of 2" in found.batch_text
    assert "group" not in resolved().batch_text


def test_what_does_not_go_with_a_division_is_refused():
    assert "3 ranks cannot be divided into groups of 2; use 2 or 4" in refused(3, parallel__tensor=2)["parallel.tensor"]
    assert "use none or 1" in refused(2, parallel__tensor=2, zero__stage=2)["zero.stage"]
    assert "set it to native" in refused(2, parallel__tensor=2, zero__stage=1)["zero.engine"]
    offload = {"zero__stage": 1, "zero__engine": "native", "zero__offload_optimizer": "cpu"}
    assert "offloads nothing" in refused(2, parallel__tensor=2, **offload)["zero.offload_optimizer"]
    assert "no DeepSpeed JSON" in refused(2, 0, {"gradient_clipping": 1.0}, parallel__tensor=2)["deepspeed"]


def test_a_run_is_the_same_however_its_model_is_divided():
    plain = resolved(2).fingerprint
    native = {"zero__stage": 1, "zero__engine": "native"}
    assert resolved(2, parallel__tensor=2).fingerprint == plain
    assert resolved(4, parallel__tensor=2, **native).fingerprint == plain
    assert resolved(2, **native).fingerprint != plain, "the engine for undivided models keeps shards"
