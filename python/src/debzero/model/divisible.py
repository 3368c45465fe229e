"""Which models can be divided over ranks (`parallel`), and into how many parts."""
from __future__ import annotations

from typing import Any, Optional

from debzero.base.errors import Problem
from debzero.base.text import count_text
from debzero.job.schema import Job

# Model types by the one whose modules they have.
FAMILIES = {"bert": "bert", "roberta": "bert", "xlm-roberta": "bert", "gpt2": "gpt2", "t5": "t5", "mt5": "t5"}


def layers_of(config: Any) -> int:
    """Layers of a model of one of the families; of T5's encoder and decoder together."""
    count = int(config.num_hidden_layers)
    if FAMILIES[config.model_type] == "t5":
        count += int(config.num_decoder_layers)
    return count


def stage_layers(config: Any, stages: int) -> list[range]:
    """The layers of each pipeline stage, as equal in number as can be; the later stages, which predict, have the
    fewer."""
    size, more = divmod(layers_of(config), stages)
    starts = [number * size + min(number, more) for number in range(stages + 1)]
    return [range(*ends) for ends in zip(starts, starts[1:])]


def parallel_problems(job: Job, file: str, config: Any) -> list[Problem]:
    """Why a model of this configuration cannot be divided as the job asks."""
    ranks, stages, kind = job.parallel.tensor, job.parallel.pipeline, config.model_type
    if job.parallel.each == 1:
        return []
    if kind not in FAMILIES:
        return [Problem(file, "parallel", f"{kind} models cannot be divided over ranks",
                        f"remove it, or use one of: {', '.join(FAMILIES)}")]
    found, layers, heads, inner = [], layers_of(config), config.num_attention_heads, _inner(config)
    if stages > layers:
        found.append(Problem(file, "parallel.pipeline", f"the model has {count_text(layers, 'layer')}, too few for "
                             f"{stages} stages", f"use at most {layers}"))
    if ranks == 1:
        return found
    if heads % ranks:
        found.append(Problem(file, "parallel.tensor", f"the model's {heads} attention heads cannot be divided by "
                             f"{ranks}", f"use a divisor of {heads}"))
    if inner % ranks:
        found.append(Problem(file, "parallel.tensor", f"the {inner} inner values of the model's feed-forward layers "
                             f"cannot be divided by {ranks}", f"use a divisor of {inner}"))
    if getattr(config, "pruned_heads", None):
        found.append(Problem(file, "parallel.tensor", "the model has lost some heads in some layers (pruned_heads), "
                             "which cannot be divided", "remove it, or use the model that it was made from"))
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        found.append(Problem(file, "parallel.tensor", "the model's heads share embeddings of relative positions "
                             f"({config.position_embedding_type}), which cannot be divided", "remove it"))
    return found


def _inner(config: Any) -> int:
    """The width of the feed-forward layers."""
    width: Optional[int] = getattr(config, "intermediate_size", None) or getattr(config, "d_ff", None)
    return width or getattr(config, "n_inner", None) or 4 * config.hidden_size
