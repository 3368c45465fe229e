"""Which models can be divided, and that what is cut can be put together again."""
import pytest
import torch
import transformers
from support import JOB, changed

from debzero.job.schema import Job
from debzero.model.divisible import FAMILIES, parallel_problems, stage_layers
from debzero.model.parts import Cut
from debzero.model.tensor_parallel import PAIRS


def reasons(kind, ranks=2, **settings):
    config = transformers.CONFIG_MAPPING[kind](**settings)
    job = Job.model_validate(changed(JOB, {"parallel.tensor": ranks}))
    return [f"{problem.reason}; {problem.fix}" for problem in parallel_problems(job, "job.yml", config)]


@pytest.mark.parametrize("kind", FAMILIES)
def test_models_of_the_families_can_be_divided(kind):
    assert reasons(kind) == [] and reasons(kind, 1) == []


def test_what_cannot_be_divided_is_refused():
    assert "distilbert models cannot be divided over ranks" in reasons("distilbert")[0]
    assert "12 attention heads cannot be divided by 5; use a divisor of 12" in reasons("bert", 5)[0]
    assert "3073 inner values" in reasons("bert", intermediate_size=3073)[0]
    assert "3074 inner values" in reasons("gpt2", 4, n_inner=3074)[0]
    assert "2049 inner values" in reasons("t5", d_ff=2049)[0]
    assert "relative_key" in reasons("bert", position_embedding_type="relative_key")[0]
    assert "pruned_heads" in reasons("bert", pruned_heads={0: [1]})[0]
    assert reasons("distilbert", 1) == []


def test_all_that_cannot_be_divided_is_named_at_once():
    job = Job.model_validate(changed(JOB, {"parallel": {"pipeline": 5, "tensor": 5}}))
    config = transformers.BertConfig(num_hidden_layers=1, intermediate_size=3073,
                                     position_embedding_type="relative_key")
    found = [(problem.key, problem.reason) for problem in parallel_problems(job, "job.yml", config)]
    assert [key for key, _ in found] == ["parallel.pipeline", *["parallel.tensor"] * 3]
    assert "the model has 1 layer, too few for 5 stages" in found[0][1]
    assert ["heads" in found[1][1], "inner" in found[2][1], "relative" in found[3][1]] == [True] * 3


def test_layers_are_dealt_to_stages_in_order():
    assert stage_layers(transformers.BertConfig(num_hidden_layers=5), 2) == [range(3), range(3, 5)]
    assert stage_layers(transformers.T5Config(num_layers=2, num_decoder_layers=3), 3) == [
        range(2), range(2, 4), range(4, 5)]
    assert stage_layers(transformers.GPT2Config(n_layer=2), 2) == [range(1), range(1, 2)]
    job = Job.model_validate(changed(JOB, {"parallel.pipeline": 3}))
    reason = parallel_problems(job, "job.yml", transformers.GPT2Config(n_layer=2))[0].reason
    assert "the model has 2 layers, too few for 3 stages" in reason


def test_every_family_has_its_layers():
    assert set(PAIRS) == set(FAMILIES.values())


@pytest.mark.parametrize(("shape", "dim", "sections", "ranks"), [
    ((6, 4), 0, 1, 2), ((6, 4), 1, 1, 4), ((4, 12), 1, 3, 2), ((12,), 0, 3, 4), ((7, 2), 0, 1, 3), ((5,), 0, 1, 4)])
def test_parts_make_the_whole(shape, dim, sections, ranks):
    whole = torch.arange(float(torch.Size(shape).numel())).view(shape)
    cut = Cut(dim, sections, shape)
    parts = [cut.part(whole, number, ranks) for number in range(ranks)]
    assert torch.equal(cut.whole(parts), whole)
    assert [cut.shape_of_part(number, ranks) for number in range(ranks)] == [tuple(part.shape) for part in parts]
    assert sum(part.numel() for part in parts) == whole.numel()
