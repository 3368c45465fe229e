"""How much a model computes, and how much a device could."""
from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Optional, TypeVar

if TYPE_CHECKING:
    import numpy as np

Lengths = TypeVar("Lengths", float, "np.ndarray")

# Dense peaks in TFLOP/s, from the vendors' datasheets (those "with sparsity" are twice as high): tensor cores in fp16
# or bf16 with fp32 sums, as in training; and fp32 without tensor cores, as torch computes unless TF32 is enabled. The
# first name that the device's name contains as a separate word counts.
PEAKS: dict[str, tuple[float, float]] = {
    "GB200": (2500, 80), "B200": (2250, 75),
    "GH200": (989, 67), "H200 NVL": (835, 60), "H200": (989, 67), "H100 PCIe": (756, 51.2), "H100 NVL": (835, 60),
    "H100": (989, 67), "H800 PCIe": (756, 51.2), "H800": (989, 67), "H20": (148, 44),
    "L40S": (362, 91.6), "L40": (181, 90.5), "L20": (119.5, 59.8), "L4": (121, 30.3),
    "A100": (312, 19.5), "A800": (312, 19.5), "A40": (149.7, 37.4), "A30": (165, 10.3), "A10G": (70, 35),
    "A10": (125, 31.2), "RTX 6000 Ada": (364, 91.1), "RTX A6000": (155, 38.7), "RTX A5000": (111, 27.8),
    "RTX 5090": (209.5, 104.8), "RTX 4090 D": (147, 73.5), "RTX 4090": (165, 82.6), "RTX 3090 Ti": (80, 40),
    "RTX 3090": (71, 35.6), "V100S": (130, 16.4), "V100-PCIE": (112, 14), "V100": (125, 15.7), "T4": (65, 8.1),
    "TITAN RTX": (130.5, 16.3), "Quadro RTX 8000": (130.5, 16.3), "Quadro RTX 6000": (130.5, 16.3),
}
NO_BF16 = ("V100S", "V100-PCIE", "V100", "T4", "TITAN RTX", "Quadro RTX 8000", "Quadro RTX 6000")  # before Ampere
# a part of the device, or a smaller one with nearly the same name
OTHER_CHIPS = re.compile(r"\b(MIG|GRID|Laptop|Max-Q|Mobile)\b")


def peak(device: str, precision: str) -> Optional[float]:
    """The peak FLOP/s in fp32, fp16 or bf16 of the device with this name; None if it is not in PEAKS."""
    found = next((name for name in PEAKS if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", device)), None)
    if found is None or OTHER_CHIPS.search(device) or (precision == "bf16" and found in NO_BF16):
        return None
    return PEAKS[found][precision == "fp32"] * 1e12


def _first(config: Any, *names: str) -> int:
    """The value under the first of these names that is set, or 0: each model family has its own names."""
    return next((int(value) for name in names if isinstance(value := getattr(config, name, None), (int, float))
                 and value), 0)


def _gated(config: Any) -> bool:
    """Whether the feed-forward layer has a third matrix, whose output is multiplied by that of the first."""
    activation = str(getattr(config, "hidden_act", None) or getattr(config, "feed_forward_proj", None) or "")
    family = str(getattr(config, "model_type", ""))
    return (bool(getattr(config, "is_gated_act", False)) or activation == "silu" or "glu" in activation
            or activation.startswith("gated") or family.startswith(("gemma", "modernbert")))


def layers(config: Any) -> int:
    """The model's repeated layers, of its encoder and its decoder; 0 for a configuration without a size."""
    encoder = _first(config, "encoder_layers", "num_hidden_layers", "num_layers", "n_layer")
    if not getattr(config, "is_encoder_decoder", False):
        return encoder
    return encoder + (_first(config, "num_decoder_layers", "decoder_layers") or encoder)


def heads(config: Any) -> int:
    """Of a layer's attention; 0 for a configuration without a size."""
    return _first(config, "num_attention_heads", "num_heads", "n_head")


def per_sample(config: Any, length: Lengths, task: str, answer: float = 0) -> Lengths:
    """Model FLOPs, forward and backward (twice the forward), of one sample of `length` tokens; an array of lengths
    gives an array.

    For L layers of width h with a feed-forward width of 4h this is 72 L h^2 s + 12 L h s^2 (Kaplan et al., 2020, with
    the scores of all pairs of tokens counted). If each token has logits, the head counts. What gradient checkpointing
    computes again does not. `answer`: the tokens of a text-to-text model's answer; the decoder of a classifier reads
    the text once more. 0 for a configuration without a size.
    """
    width = _first(config, "hidden_size", "d_model", "n_embd")
    encoder = _first(config, "encoder_layers", "num_hidden_layers", "num_layers", "n_layer")
    count = heads(config)
    if not (width and encoder and count):
        return length * 0.0
    head = _first(config, "d_kv", "head_dim") or width // count
    queries, keys = count * head, (_first(config, "num_key_value_heads") or count) * head
    matrices = 3 if _gated(config) else 2
    inner = _first(config, "encoder_ffn_dim", "intermediate_size", "d_ff", "n_inner", "ffn_dim",
                   "hidden_dim") or 4 * width

    def stack(tokens: Lengths) -> Lengths:
        """Forward FLOPs of one layer: two for each weight and token, four for each pair of tokens (the score, the
        weighted sum)."""
        return 2.0 * tokens * (2 * width * (queries + keys)
                               + matrices * width * inner) + 4.0 * queries * tokens * tokens

    forward = encoder * stack(length)
    if getattr(config, "is_encoder_decoder", False):
        written = length * 0.0 + answer if task == "text-to-text" else length
        crossing = 4.0 * width * (queries * written + keys * length) + 4.0 * queries * written * length
        forward = forward + (layers(config) - encoder) * (stack(written) + crossing)
        if task == "text-to-text":
            forward = forward + 2.0 * width * _first(config, "vocab_size") * written
    if task == "causal-lm":
        forward = forward + 2.0 * width * _first(config, "vocab_size") * length
    return 3.0 * forward
