"""A tokenizer's configuration must not name files of the host."""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from debzero.base.errors import UserError

# Where the tokenizer came from; transformers never opens these.
HARMLESS = {"name_or_path", "special_tokens_map_file"}


def refuse_foreign_files(model: str, **hub: Any) -> None:
    """Raises a UserError if the tokenizer_config.json of a model names a file outside of the model's folder.

    transformers prefers such a name, wherever it leads, to the model's own file (transformers#46279). The lines of any
    file that the job's user may read would become the vocabulary, and be saved with the trained model. `hub` says which
    revision of a hub's model is meant, in the words of from_pretrained.
    """
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    for key, text in _strings(get_tokenizer_config(model, **hub), ""):
        path = Path(os.path.abspath(text))
        if os.path.exists(text) and not path.is_dir() and Path(os.path.abspath(model)) not in path.parents:
            raise UserError(f"the tokenizer_config.json of {model} says {key}: {text}, which is no file of the model",
                            f"use a model that you trust; if this is one, delete {key} from that file")


def _strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Each string in JSON, with the outermost key that it is under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in HARMLESS:
                yield from _strings(item, key or name)
