"""How much a model computes, and how much a device could."""
from __future__ import annotations

from typing import Any, Optional

# Dense tensor-core peaks in fp16 and bf16, TFLOP/s, from the vendors' datasheets. The first name found in the device's wins.
HALF_PEAKS = {
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312, "A800": 312, "A40": 149.7, "A30": 165,
    "A10G": 70, "A10": 125, "L40S": 362, "L40": 181, "L4": 121, "V100": 125, "T4": 65, "RTX A6000": 155, "RTX A5000": 111,
    "RTX 4090": 165, "RTX 3090": 71, "Quadro RTX 8000": 130,
}
# Without tensor cores: what fp32 runs at unless a job asks torch for TF32.
FULL_PEAKS = {"B200": 75, "H200": 67, "H100 PCIe": 51, "H100 NVL": 60, "H100": 67, "A100": 19.5, "A800": 19.5, "A40": 37.4, "A30": 10.3,
              "A10G": 31.5, "A10": 31.2, "L40S": 91.6, "L40": 90.5, "L4": 30.3, "V100": 15.7, "T4": 8.1, "RTX A6000": 38.7}


def peak(device: str, precision: str) -> Optional[float]:
    """FLOP/s that the device of this name reaches at best; None for one that nobody wrote down here."""
    table = FULL_PEAKS if precision == "fp32" else HALF_PEAKS
    found = next((value for name, value in table.items() if name in device), None)
    return found * 1e12 if found else None


def _stack(layers: int, width: int, inner: int, attention: int, length: int, sources: int) -> float:
    """Forward FLOPs of one sample in `layers` layers: per token the projections (2 FLOPs a weight), and per pair of tokens the
    scores and the weighted sum. `sources`: attention blocks a layer (2 in a decoder that looks at an encoder)."""
    weights = sources * 4 * width * attention + 2 * width * inner
    return layers * (2 * weights * length + sources * 4 * attention * length**2)


def per_sample(config: Any, length: int, task: str) -> float:
    """Model FLOPs, forward and backward (twice the forward), of one sample of `length` tokens.

    With L layers of width h and 4h inside it is 72 L h^2 s + 12 L h s^2 (Kaplan et al., 2020, with attention counted). The
    head's vocabulary counts where each token has logits; recomputation for gradient checkpointing does not count.
    """
    width = getattr(config, "hidden_size", None) or getattr(config, "d_model", None) or 768
    layers = getattr(config, "num_hidden_layers", None) or 12
    inner = getattr(config, "intermediate_size", None) or getattr(config, "d_ff", None) or getattr(config, "n_inner", None) or 4 * width
    heads = getattr(config, "num_attention_heads", None) or 12
    attention = heads * (getattr(config, "d_kv", None) or width // heads)
    gated = 1.5 if getattr(config, "is_gated_act", False) else 1.0
    forward = _stack(layers, width, int(inner * gated), attention, length, 1)
    if getattr(config, "is_encoder_decoder", False) and task != "text-to-text":  # the decoder reads the text once more
        decoder = getattr(config, "num_decoder_layers", None) or layers
        forward += _stack(decoder, width, int(inner * gated), attention, length, 2)
    if task == "causal-lm":
        forward += 2.0 * width * config.vocab_size * length
    return 3 * forward
