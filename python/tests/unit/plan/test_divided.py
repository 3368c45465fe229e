"""`debzero plan` for a job whose model is divided; tune and bench compare other things."""
import json

import pytest
from support import Bench

from debzero.base.errors import InputError
from debzero.bench import configurations
from debzero.plan.divided import bubble
from debzero.plan.table import plan_job


def test_the_bubble_shrinks_with_the_micro_batches():
    assert bubble(4, 1) == 0 and bubble(1, 2) == 0.5
    assert bubble(8, 4) == pytest.approx(3 / 11)


def plan(bench: Bench, capsys, **changes):
    sizes = {"gpu_memory": "1G", "ram": "64G", "nvme": None}
    model = {"type": "bert", "vocab_size": 30000, "num_hidden_layers": 4}
    assert plan_job(bench.job(model=model, ranks=None, **changes), 4, sizes, None, True) == 0
    return json.loads(capsys.readouterr().out)


def test_each_rank_needs_less_of_a_divided_model(bench, capsys):
    tensor = plan(bench, capsys, parallel__tensor=2)
    both = plan(bench, capsys, parallel__tensor=2, parallel__pipeline=2)
    sharded = plan(bench, capsys, parallel__tensor=2, zero__stage=1, zero__engine="native")
    assert (tensor["copies"], both["copies"], both["pipeline"]) == (2, 1, 2)
    assert both["parameters_per_rank"] < 0.6 * tensor["parameters_per_rank"]
    assert both["peak_bytes"] < tensor["peak_bytes"] and sharded["peak_bytes"] < tensor["peak_bytes"]
    assert tensor["bubble_share"] == 0 and both["bubble_share"] == bubble(both["accumulation"], 2)
    assert not tensor["fits"], "a gigabyte is less than the context"


def test_people_are_told_of_the_bubble(bench, capsys):
    job = bench.job(parallel__pipeline=2, ranks=None, model__num_hidden_layers=2)
    sizes = {"gpu_memory": "40G", "ram": "64G", "nvme": None}
    assert plan_job(job, 2, sizes, None, False) == 0
    text = capsys.readouterr().out
    assert "2 (pipeline) x 1 (tensor) x 1 (copies)" in text and "which fits" in text
    assert "20% of each step: (2 - 1) / (4 + 2 - 1), with 4 micro-batches a step" in text


def test_what_compares_stages_of_zero_refuses_a_divided_model():
    from support import JOB, changed

    from debzero.job.schema import Job
    from debzero.resolve.host import HostGpus
    from debzero.resolve.resolve import resolve

    job = Job.model_validate(changed(JOB, {"parallel.tensor": 2}))
    with pytest.raises(InputError, match="divides the model over 2 ranks"):
        configurations.check(resolve(job, HostGpus(0, False), 2, "job.yml", None), "job.yml", [], [], False)
