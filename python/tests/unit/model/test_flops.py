"""What is computed, counted a second way; and what a device could compute."""

import numpy as np
import pytest

from debzero.model import flops


def test_flops_of_bert_large():
    from transformers import BertConfig

    large = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    lengths = np.array([53, 128, 512])
    expected = [96.9e9, 236.8e9, 1005e9]
    assert flops.per_sample(large, lengths, "classification") == pytest.approx(expected, rel=1e-3)
    assert [flops.per_sample(large, float(length), "classification")
            for length in lengths] == pytest.approx(expected, rel=1e-3)


MODELS = {
    "bert": ("classification",
             {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}),
    "distilbert": ("classification", {"dim": 24, "n_layers": 3, "n_heads": 2, "hidden_dim": 40}),
    "gpt2": ("causal-lm", {"n_embd": 24, "n_layer": 3, "n_head": 2}),
    "llama": ("causal-lm",
              {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
                            "intermediate_size": 40}),
    "t5": ("text-to-text", {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 3, "num_decoder_layers": 2,
                            "num_heads": 2, "feed_forward_proj": "gated-gelu"}),
    "bart": ("classification", {"d_model": 24, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 2,
                                "decoder_attention_heads": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40}),
}


@pytest.mark.parametrize("kind", list(MODELS))
def test_flops_are_those_of_the_models_own_matrices(kind):
    """Counted where they are multiplied, in a forward pass of transformers' model; and the scores of all pairs of
    tokens."""
    import torch
    import transformers
    from transformers.pytorch_utils import Conv1D

    task, sizes = MODELS[kind]
    autos = {"classification": "AutoModelForSequenceClassification", "causal-lm": "AutoModelForCausalLM",
             "text-to-text": "AutoModelForSeq2SeqLM"}
    config = transformers.AutoConfig.for_model(kind, vocab_size=50, **sizes)
    config.pad_token_id = config.bos_token_id = config.eos_token_id = config.decoder_start_token_id = 0
    model = getattr(transformers, autos[task]).from_config(config).eval()
    length, answer, counted = 10, 4, []

    def count(module, inputs, made):
        counted.append(2 * module.weight.numel() * inputs[0].numel() // inputs[0].shape[-1])

    for name, module in model.named_modules():
        # What classifies a sample counts for nothing beside what reads its tokens, and is left out.
        if isinstance(module, (torch.nn.Linear, Conv1D)) and not any(word in name for word in ("pooler", "classif")):
            module.register_forward_hook(count)
    tokens = torch.arange(1, length + 1)[None]
    if kind == "bart":
        tokens[:, -1] = config.eos_token_id
    with torch.no_grad():
        model(input_ids=tokens,
              **({"labels": torch.ones(1, answer, dtype=torch.long)} if task == "text-to-text" else {}))
    layers = model.config.num_hidden_layers
    width = 2 * 8 if kind == "t5" else model.config.hidden_size
    pairs = layers * length**2
    if task == "text-to-text":
        pairs += 2 * (answer**2 + answer * length)
    elif kind == "bart":
        pairs += 2 * 2 * length**2
    assert flops.per_sample(config, length, task, answer) == 3 * (sum(counted) + 4 * width * pairs)


def test_a_configuration_that_tells_no_size_has_no_flops():
    assert flops.per_sample(object(), 128, "classification") == 0


@pytest.mark.parametrize(("device", "precision", "teraflops"), [
    ("Tesla V100-SXM2-16GB", "fp16", 125), ("Tesla V100-PCIE-16GB", "fp16", 112),
    ("Tesla V100-SXM2-16GB", "bf16", None), ("Tesla T4", "fp16", 65), ("NVIDIA A100-SXM4-40GB", "bf16", 312),
    ("NVIDIA A100-SXM4-40GB", "fp32", 19.5), ("NVIDIA A10", "bf16", 125), ("NVIDIA A10G", "bf16", 70),
    ("NVIDIA A30", "fp16", 165), ("NVIDIA A40", "bf16", 149.7), ("NVIDIA L4", "bf16", 121),
    ("NVIDIA L40S", "bf16", 362), ("NVIDIA RTX A6000", "bf16", 155), ("NVIDIA GeForce RTX 3090", "fp16", 71),
    ("NVIDIA GeForce RTX 4090", "bf16", 165), ("NVIDIA H100 80GB HBM3", "bf16", 989),
    ("NVIDIA H100 PCIe", "bf16", 756), ("NVIDIA H100 NVL", "bf16", 835), ("NVIDIA H200", "bf16", 989),
    ("NVIDIA B200", "bf16", 2250), ("NVIDIA H200", "fp32", 67), ("NVIDIA RTX A4000", "bf16", None),
    ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None), ("NVIDIA T400", "fp16", None),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", "fp16", None), ("AMD EPYC 7763 (2 cores)", "fp32", None)])
def test_peaks(device, precision, teraflops):
    assert flops.peak(device, precision) == (teraflops and pytest.approx(teraflops * 1e12))
