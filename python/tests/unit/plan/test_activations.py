"""The traced activation memory: against torch's own saved tensors, the whole model and the literature."""
import numpy as np
import pytest
import torch
from planning import TINY, curve, shapes

from debzero.job.schema import Job
from debzero.model.meta import OnMeta
from debzero.plan.activations import LayersNotTrainedError, shorten, trace
from debzero.plan.model_shapes import Shapes


@pytest.mark.parametrize(("half", "checkpointing"), [(None, False), (torch.bfloat16, False), (None, True)])
@pytest.mark.parametrize("task", list(TINY))
def test_four_layers_and_repetition_equal_the_whole_model(task, half, checkpointing):
    short, whole = (curve(task, half, whole, checkpointing=checkpointing) for whole in (False, True))
    assert short.forward == whole.forward
    for name in ("sample", "gradients"):
        np.testing.assert_array_equal(getattr(short, name), getattr(whole, name), err_msg=name)


@pytest.mark.parametrize("task", list(TINY))
def test_checkpointing_keeps_less_however_the_model_calls_its_layers(task):
    """T5 checkpoints `layer.forward`, others the layer."""
    often, again = (curve(task, checkpointing=checkpointing) for checkpointing in (False, True))
    assert again.sample.max() < 0.4 * often.sample.max() and again.gradients[-1] == often.gradients[-1]


def test_layers_that_return_lists_are_traced():
    model = {"type": "openai-gpt", "vocab_size": 100, "n_embd": 32, "n_layer": 6, "n_head": 2}
    job = Job.model_validate({"model": model, "task": "causal-lm", "data": {"dataset": "x.csv", "max_length": 16},
                              "output": "out"})
    assert Shapes(job, "job.yml", None).curve("fp32", False).sample.max() > 0


def test_a_model_that_drops_its_layers_outputs_when_it_checkpoints_is_said_to_do_so():
    """As UMT5 of transformers 4.46 does: only its embeddings would train."""
    own = shapes("text-to-text", checkpointing=True)
    model = own._build()
    for stack in (model.encoder, model.decoder):
        for layer in stack.block:
            layer.forward = lambda hidden, *args, real=layer.forward, **kwargs: (
                hidden * 1, *real(hidden.detach(), *args, **kwargs)[1:])
    with pytest.raises(LayersNotTrainedError):
        trace(model, shorten(model), own.task.losses, own._batch(), None, False)


@pytest.mark.parametrize("task", list(TINY))
def test_all_gradients_come_and_no_activation_stays(task):
    found, model = curve(task), shapes(task)._build()
    assert found.gradients[-1] == sum(p.numel() for p in model.parameters())
    assert np.all(np.diff(found.gradients) >= 0) and not found.gradients[found.forward - 1]
    assert 0 < found.sample[-1] < 0.02 * found.sample[found.forward - 1], "the inputs and the last operation's result"


def test_a_layer_of_bert_keeps_what_korthikanti_et_al_count():
    length, hidden, heads = 64, 128, 4
    sizes = {"length": length, "hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": 4 * hidden,
             "dtype": torch.float16}
    two, three = (curve("classification", num_hidden_layers=layers, **sizes) for layers in (3, 4))
    layer = three.sample[three.forward - 1] - two.sample[two.forward - 1]
    eager = getattr(shapes("classification")._build().config, "_attn_implementation", "eager") == "eager"
    expected = 34 * length * hidden + (5 * heads * length**2 if eager else 0)
    assert layer == pytest.approx(expected, rel=0.02)
    compiled = [curve("classification", num_hidden_layers=layers, compiled=True, **sizes) for layers in (3, 4)]
    kept = compiled[1].sample[compiled[1].forward - 1] - compiled[0].sample[compiled[0].forward - 1]
    assert 0.8 * expected < kept < 1.02 * expected


@pytest.mark.parametrize("task", list(TINY))
def test_the_forward_pass_keeps_what_torch_saves_on_the_cpu(task):
    """Without dropout, whose kernel keeps other things on the CPU, the same code on real tensors must save as many
    bytes."""
    import transformers

    quiet = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"),
                          0.0) if task == "classification" else (
        dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0) if task == "causal-lm"
        else {"dropout_rate": 0.0})
    own = shapes(task, **quiet)
    own.config._attn_implementation = "eager"
    model = getattr(transformers, own.task.auto).from_config(own.config).float().train()
    rows, saved = 3, {}

    def pack(tensor):
        storage = getattr(tensor, "untyped_storage", tensor.storage)()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = {name: torch.ones(rows, *tensor.shape[1:], dtype=tensor.dtype) for name, tensor in own._batch().items()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        own.task.losses(model, batch).sum()
    weights = {getattr(t, "untyped_storage", t.storage)().data_ptr() for t in [*model.parameters(), *model.buffers(),
                                                                               *batch.values()]}
    real = sum(size for place, size in saved.items() if place not in weights)
    with OnMeta():
        meta = getattr(transformers, own.task.auto).from_config(own.config).float()
    found = trace(meta, shorten(meta), own.task.losses, own._batch(), None, False)
    inputs = sum(t.numel() * t.element_size() for t in batch.values())
    predicted = found.bytes(rows)[found.forward - 1] - inputs
    assert predicted == pytest.approx(real, rel=0.05)
