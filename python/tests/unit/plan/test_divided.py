"""`debzero plan` for a job whose model is divided."""
import json

import pytest
import torch
from planning import BENCHMARKS, TINY, shapes
from support import Bench

from debzero.job.schema import Job, Parallel
from debzero.plan.divided import DividedMemory, bubble
from debzero.plan.model_shapes import Shapes
from debzero.plan.table import plan_job
from debzero.resolve.host import HostGpus
from debzero.resolve.resolve import resolve


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
    assert both["parameters_per_rank"] < 0.8 * tensor["parameters_per_rank"], "the embeddings are the first stage's"
    assert both["peak_bytes"] < tensor["peak_bytes"] and sharded["peak_bytes"] < tensor["peak_bytes"]
    assert tensor["bubble_share"] == 0 and both["bubble_share"] == bubble(both["accumulation"], 2)
    assert not tensor["fits"] and tensor["lacks"] == ["GPU memory"], "a gigabyte is less than the context"
    first, last = both["stages"]
    assert (first["first_layer"], first["layers"], last["first_layer"], last["layers"]) == (0, 2, 2, 2)
    assert both["peak_bytes"] == max(first["peak_bytes"], last["peak_bytes"]) and both["largest_stage"] == 0


def stages(family, micro=2, batch=16, **parallel):
    """A tiny model's shapes, and the needs of each of its pipeline stages in half precision."""
    own = shapes(family)
    train = own.job.train.model_copy(update={"global_batch": batch, "micro_batch": micro, "precision": "bf16"})
    asked = Parallel(**parallel)
    own.job = own.job.model_copy(update={"parallel": asked, "ranks": asked.each, "train": train})
    resolved = resolve(own.job, HostGpus(asked.each, True), None, "job.yml", None)
    return own, DividedMemory(own, resolved.layout).stages(resolved)


@pytest.mark.parametrize("family", TINY)
def test_stages_hold_their_own_layers_alone(family):
    """Together they have the whole model's weights, and more than once only what is tied or shared."""
    whole, found = stages(family, pipeline=3)
    assert [stage.number for stage in found] == [0, 1, 2]
    assert sum(len(stage.layers) for stage in found) == (12 if family == "text-to-text" else 6)
    total, shared = whole.counts.total, 100 * 32 * 2 + 32 * 2 * 2
    assert total <= sum(stage.parameters for stage in found) <= total + shared
    assert [stage.in_flight for stage in found] == [3, 2, 1]


def test_earlier_stages_hold_the_activations_of_more_micro_batches():
    few, many = (stages("classification", micro=64, batch=64 * count, pipeline=3)[1] for count in (1, 8))
    assert [stage.in_flight for stage in few] == [1, 1, 1]
    held = [more.memory.parts_bytes["activations"] / less.memory.parts_bytes["activations"]
             for more, less in zip(many, few)]
    assert 2.4 < held[0] <= 3.1 and held[0] > held[1] > held[2] == 1


def test_tensor_parallel_ranks_share_what_the_cut_layers_keep():
    _, (whole,) = stages("causal-lm", micro=16)
    _, (half,) = stages("causal-lm", micro=16, tensor=2)
    assert 0.5 < half.parameters / whole.parameters < 0.7, "positions and norms are whole"
    kept = half.memory.parts_bytes["activations"] / whole.memory.parts_bytes["activations"]
    assert 0.5 < kept < 0.8, "what enters and leaves a layer is whole on each rank"


@pytest.mark.skipif(not hasattr(torch, "compile"), reason="measured with current releases, whose attention is fused")
@pytest.mark.parametrize("contestant", ["pipeline2", "tensor2"])
def test_the_measured_peaks_were_predicted(contestant):
    """docs/benchmarks/gpus-2.json: GPT-2 Medium on two H200s."""
    measured = json.loads((BENCHMARKS / "gpus-2.json").read_text())["cells"][f"2/gpt2-medium/padded/{contestant}"]
    micro, parallel = (4, {"pipeline": 2}) if contestant == "pipeline2" else (16, {"tensor": 2})
    job = Job.model_validate({
        "model": "gpt2-medium", "task": "causal-lm", "data": {"dataset": "rows.csv", "max_length": 512},
        "train": {"global_batch": 32, "micro_batch": micro, "precision": "bf16"}, "parallel": parallel,
        "output": "out"})
    resolved = resolve(job, HostGpus(2, True), None, "job.yml", None)
    found = DividedMemory(Shapes(job, "job.yml", None), resolved.layout).stages(resolved)
    for rank, peak in enumerate(measured["runs"][0]["memory_bytes"]):
        ratio = found[min(rank, len(found) - 1)].memory.peak_bytes / peak
        assert 0.95 <= ratio <= 1.10, f"rank {rank}: {ratio:.3f}"


def test_people_are_told_of_the_bubble(bench, capsys):
    job = bench.job(parallel__pipeline=2, ranks=None, model__num_hidden_layers=2)
    sizes = {"gpu_memory": "40G", "ram": "64G", "nvme": None}
    assert plan_job(job, 2, sizes, None, False) == 0
    text = capsys.readouterr().out
    assert "2 (pipeline) x 1 (tensor) x 1 (copies)" in text and "which fits" in text
    assert "layers 1 to 1" in text and "2 micro-batches at once  (the largest)" in text
    assert max(map(len, text.splitlines())) <= 120 and "micro-batch that fits: 32" in text
    assert "20% of each step: (2 - 1) / (4 + 2 - 1), with 4 micro-batches a step" in text
