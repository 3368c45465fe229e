"""The traced activation memory: against torch's own saved tensors, the whole model and the literature."""
import numpy as np
import pytest
import torch
from planning import TINY, curve, shapes

from debzero.model.meta import OnMeta
from debzero.plan.activations import shorten, trace


@pytest.mark.parametrize("half", [None, torch.bfloat16])
@pytest.mark.parametrize("task", list(TINY))
def test_four_layers_and_repetition_equal_the_whole_model(task, half):
    short, whole = curve(task, half), curve(task, half, whole=True)
    assert short.forward == whole.forward
    for name in ("sample", "gradients"):
        np.testing.assert_array_equal(getattr(short, name), getattr(whole, name), err_msg=name)


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
