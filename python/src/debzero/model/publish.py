"""What a saved model must say so that transformers alone, in other people's hands, uses it as it was trained."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PROBLEMS = {"classification": "single_label_classification", "regression": "regression"}


@contextmanager
def as_published(model: Any, task: str) -> Iterator[None]:
    """Within the block the configurations of a model for this task are as they shall be saved.

    Training keeps no keys and values of earlier tokens: without them generating text is many times slower. And without
    a problem type a pipeline takes the one output of a regression for a class, and applies a sigmoid to it.
    """
    settings: list[Any] = [model.config, getattr(model, "generation_config", None)]
    settings = [each for each in settings if hasattr(each, "use_cache")]
    before, problem = [each.use_cache for each in settings], model.config.problem_type
    for each in settings:
        each.use_cache = True
    model.config.problem_type = PROBLEMS.get(task)
    try:
        yield
    finally:
        for each, value in zip(settings, before):
            each.use_cache = value
        model.config.problem_type = problem
