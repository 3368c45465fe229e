"""How many tokens a model has positions for: one answer for check, plan and train."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Optional

from debzero.base.errors import Problem
from debzero.job.schema import Job
from debzero.model.folder import no_code
from debzero.resolve.precision import cached_config

# Model types whose positions are numbered from one after the padding token's number, as in fairseq, where they come
# from: with the usual padding token 1, RoBERTa's 514 positions serve 512 tokens.
AFTER_PADDING = {"camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm",
                 "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
# Where configurations have the number: most types, LED, MPT.
NAMES = ("max_position_embeddings", "max_encoder_position_embeddings", "max_seq_len")


def usable_positions(config: Any, padding: Optional[int] = None) -> Optional[int]:
    """The most tokens that a model of this configuration takes; None where nothing limits them (T5, XLNet, DeBERTa-v3).
    `padding`: the number of the padding token, where it will not be the configuration's."""
    if not getattr(config, "position_biased_input", True) or getattr(config, "position_embedding_type", "") == "rotary":
        return None
    longest = next((value for name in NAMES if (value := getattr(config, name, None)) is not None), None)
    if type(longest) is not int or longest <= 0:
        return None
    if config.model_type not in AFTER_PADDING:
        return longest
    if padding is None or config.model_type == "mpnet":  # its code has the number 1
        padding = 1 if config.model_type == "mpnet" else config.pad_token_id or 0
    return longest - padding - 1


def position_problems(job: Job, file: str, config: Any, padding: Optional[int] = None) -> list[Problem]:
    """What is wrong with `data.max_length` and `data.max_answer_length` for a model of this configuration."""
    return [*_too_long(job, file, config, padding), *_answers_too_long(job, file, config, padding)]


def _answers_too_long(job: Job, file: str, config: Any, padding: Optional[int]) -> list[Problem]:
    """What a decoder of its own lacks positions for. LED's has another number of them than its encoder."""
    if job.data.answers != "text" or not getattr(config, "is_encoder_decoder", False):
        return []
    longest = getattr(config, "max_decoder_position_embeddings", None) or usable_positions(config, padding)
    if longest is None or job.data.max_answer_length <= longest:
        return []
    return [Problem(file, "data.max_answer_length", f"{job.data.max_answer_length} tokens are more than the decoder's "
                    f"{longest} positions", f"use at most {longest}")]


def _too_long(job: Job, file: str, config: Any, padding: Optional[int]) -> list[Problem]:
    if getattr(config, "axial_pos_embds", False):  # Reformer trains with samples of one length alone
        length = math.prod(config.axial_pos_shape)
        return [] if job.data.padding == "max_length" and job.data.max_length == length else [Problem(
            file, "data.max_length", f"{config.model_type} models train with samples of exactly {length} tokens "
            "(axial_pos_shape)", f"set max_length: {length} and padding: max_length, or another axial_pos_shape")]
    longest = usable_positions(config, padding)
    if longest is None or job.data.max_length <= longest:
        return _not_in_chunks(job, file, config)
    key = next(name for name in NAMES if getattr(config, name, None) is not None)
    unused = getattr(config, key) - longest
    reason = f"{job.data.max_length} tokens are more than the model's {longest} positions"
    if unused:
        reason += f" ({key} is {getattr(config, key)}, and {config.model_type} models never use the first {unused})"
    larger = f", or a larger model.{key}" if isinstance(job.model, dict) else ", or a model with more positions"
    return [Problem(file, "data.max_length", reason, f"use at most {longest}{larger}")]


def _not_in_chunks(job: Job, file: str, config: Any) -> list[Problem]:
    """Reformer's attention goes by chunks, which padding fills up only outside a training."""
    if config.model_type != "reformer":
        return []
    chunks = {getattr(config, f"{kind}_attn_chunk_length") for kind in set(config.attn_layers)}
    step, length = math.lcm(*chunks), job.data.max_length
    if length <= min(chunks) or job.data.padding == "max_length" and length % step == 0:
        return []
    nearest = max(step, math.ceil(length / step) * step)
    return [Problem(file, "data.max_length", f"{config.model_type} models train with samples of a multiple of {step} "
                    f"tokens (their attention's chunks), or of at most {min(chunks)}",
                    f"set max_length: {nearest} and padding: max_length")]


def local_config(job: Job) -> Any:
    """The configuration of the job's model, from its folder or the hub's cache; None where neither has one that
    transformers can read without code of the model's own. The hub is not asked."""
    from transformers import AutoConfig

    name = str(job.model)
    # A hub's by its path in the cache: a folder here may have the same name.
    place = name if Path(name).is_absolute() else cached_config(name, job.revision)
    if place is None:
        return None
    try:
        return AutoConfig.from_pretrained(place, local_files_only=True, **no_code())
    except Exception:  # of many types; the checks of the model itself report what is wrong
        return None
