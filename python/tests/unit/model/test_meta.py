"""What models do on the meta device that its releases lack."""
import torch
from transformers import GPTJConfig

from debzero.job.schema import Job
from debzero.model.meta import OnMeta
from debzero.model.opened import refusal, skeleton


def test_repeats_have_a_size_there():
    with OnMeta():
        tensor = torch.empty(2, 3)
        assert torch.repeat_interleave(tensor, 2, dim=-1).shape == (2, 6)
        assert tensor.repeat_interleave(2, 0).shape == (4, 3)
        assert tensor.repeat_interleave(2).shape == (12,)
        assert torch.repeat_interleave(tensor, repeats=2, dim=1, output_size=6).shape == (2, 6)


def test_sizes_of_rotated_positions_are_tried():
    job = Job.model_validate({"model": "./m", "task": "causal-lm", "data": {"dataset": "./x.csv", "text": ["text"]},
                              "output": "./out"})
    sizes = {"vocab_size": 20, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}
    wrong, right = (GPTJConfig(rotary_dim=dim, **sizes) for dim in (64, 8))
    assert "must match" in refusal(job, skeleton(job, wrong)) and not refusal(job, skeleton(job, right))
