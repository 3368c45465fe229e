"""What a saved model must say so that others use it as it was trained: transformers alone, in other people's hands, and
`debzero predict`."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Optional

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from debzero.job.schema import MOST, Job

PROBLEMS = {"classification": "single_label_classification", "regression": "regression"}


class Inputs(BaseModel):
    """How a model was given its texts, by the keys of the job that trained it. The defaults are those of a model that
    debzero did not train."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    task: Literal["classification", "regression", "causal-lm", "text-to-text"]
    text: Annotated[list[str], Field(min_length=1, max_length=2)] = ["text"]
    prefix: list[str] = []
    max_length: Annotated[int, Field(ge=1, lt=MOST)]
    answers: Literal["classes", "text"] = "classes"
    max_answer_length: Annotated[int, Field(ge=1, lt=MOST)] = 128


def inputs_of(job: Job) -> dict[str, Any]:
    """What a model of this job says of its inputs, as JSON."""
    known = {**job.data.model_dump(mode="json"), "task": job.task}
    return {name: known[name] for name in Inputs.model_fields}


def as_inputs(values: Any) -> Optional[Inputs]:
    """The same as it was read from a file; None where that says nothing of them."""
    try:
        return Inputs.model_validate(values)
    except ValidationError:
        return None


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
