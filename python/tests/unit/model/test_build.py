"""The model that is built is the one that was asked for."""
import pytest
import torch
from planning import TINY
from support import JOB, changed

from debzero.model import build
from debzero.model.sharded import in_main_memory


def test_t5s_bias_becomes_straight_and_stays_the_same():
    import transformers

    torch.manual_seed(0)
    settings = {key: value for key, value in TINY["text-to-text"].items() if key != "type"}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**settings))
    attention = model.encoder.block[0].layer[0].SelfAttention
    before = attention.compute_bias(8, 8)
    build.use_contiguous_bias(model)
    after = attention.compute_bias(8, 8)
    assert not before.is_contiguous() and after.is_contiguous() and torch.equal(before, after)
    assert not any("compute_bias" in name for name in model.state_dict())


def test_a_check_builds_a_model_for_some_seconds_only(monkeypatch):
    """Thousands of layers take minutes; nobody has them, and a job file is no way to hang a command."""
    from debzero.job.schema import Job
    from debzero.model import checks, opened

    job = Job.model_validate(changed(JOB, {"model.num_attention_heads": 3}))
    assert [problem.key for problem in checks.model_problems(job, "job.yml")] == ["model"]
    monkeypatch.setattr(opened, "LONGEST_BUILD", 0)
    job = Job.model_validate(changed(JOB, {"model.num_hidden_layers": 9999}))
    assert not checks.model_problems(job, "job.yml")


def test_a_number_that_yaml_takes_for_text_is_one():
    from debzero.job.schema import Job
    from debzero.model import checks, settings

    job = Job.model_validate(changed(JOB, {"model.layer_norm_eps": "1e-12"}))
    assert not checks.model_problems(job, "job.yml") and settings.from_scratch(job.model).layer_norm_eps == 1e-12


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_new_head_of_a_sharded_model_starts_as_at_the_other_stages(half):
    """Its weights were drawn in bf16, which has random numbers of its own."""
    drawn, sharded, whole = torch.nn.Linear(32, 4), torch.nn.Linear(32, 4, dtype=half), torch.nn.Linear(32, 4)
    empty = torch.nn.Parameter(torch.empty(0, dtype=half))
    torch.manual_seed(1)
    torch.nn.init.normal_(drawn.weight)
    torch.manual_seed(1)
    with in_main_memory([sharded.weight, whole.bias, empty]):
        torch.nn.init.normal_(sharded.weight)
        whole.bias.data.zero_()
    assert sharded.weight.dtype == half and torch.equal(sharded.weight, drawn.weight.to(half))
    assert not whole.bias.any() and not empty.numel()
