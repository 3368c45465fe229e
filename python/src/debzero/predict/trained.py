"""What is asked: a trained model's folder, with what it says of its task, its inputs and its classes.

debzero writes into the folder how the model was given its texts. In a folder of another program the configuration
names the class of the model, which says the task.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from debzero.base import privileges
from debzero.base.errors import InputError, Problem, UserError
from debzero.base.files import read_json, unreadable
from debzero.model import tasks
from debzero.model.folder import flaws, no_code
from debzero.model.positions import usable_positions
from debzero.model.publish import Inputs, as_inputs
from debzero.model.tokenizer import highest, load_tokenizer
from debzero.model.tokens import OWN
from debzero.run.folder import MODEL_FACTS, RunFolder
from debzero.run.status import check_readable, locate

LONGEST = 512           # tokens of a text where neither the job nor the model says it
CONTINUATION = 50       # tokens that are written after a text, where nobody says it
ANSWER = 128            # tokens of an answer, where neither the job nor the user says it


@dataclass(frozen=True)
class Trained:
    """A model folder whose configuration and tokenizer are loaded; the weights are the engine's. `auto`: transformers'
    class for the task; `labels`: the classes to choose from, where there are some; `limit`: tokens that are written at
    most; `positions`: tokens that the model takes at most, if anything limits them."""

    folder: Path
    task: str
    auto: str
    inputs: Inputs
    by_debzero: bool
    labels: list[str]
    limit: int
    positions: Optional[int]
    config: Any
    tokenizer: Any

    @property
    def continues(self) -> bool:
        """Whether it writes on after the text; otherwise it answers it."""
        return self.task == "causal-lm"

    @property
    def writes(self) -> bool:
        """Whether its answer is a text of its own."""
        return self.continues or self.task == "text-to-text" and not self.labels


def find(name: str, *others: Optional[Path]) -> Path:
    """The model folder that a job's name, a job file, an output folder or the model folder itself means. Root becomes
    its owner, or that of `others`, which are to be written. Raises an InputError where there is none."""
    if name and (Path(name) / "config.json").is_file():
        folder = Path(name).absolute()
        privileges.become_owner(folder, *filter(None, others))
        return folder
    run = locate(name)
    privileges.become_owner(run.folder, *filter(None, others))
    check_readable(run, name)
    folder = run.archive.place(run.model.name)
    if not (folder / "config.json").is_file():
        raise InputError([Problem(name, "model", unreadable(folder) or _no_model(run, name), _start(run, name))])
    return folder


def states(folder: Path) -> list[list[Any]]:
    """What changes where another model takes this one's place: the state of its files; none where it is gone."""
    try:
        return [state(path) for path in sorted(folder.iterdir()) if path.is_file()]
    except OSError:
        return []


def state(path: Path) -> list[Any]:
    info = path.stat()
    return [str(path), info.st_size, info.st_mtime_ns]


def _no_model(run: RunFolder, name: str) -> str:
    status = run.status()
    return f"{run.folder} holds no trained model" + (f": its run is {status.state}" if status else ", and no run")


def _start(run: RunFolder, name: str) -> str:
    return ("wait until it has finished (`debzero status --watch`)" if run.held() else
            "train it first, or name a folder that save_pretrained wrote")


def load(folder: Path, weights: bool = True) -> Trained:
    """Raises an InputError for a folder that cannot be used, and a UserError where its tokenizer cannot. `weights`:
    whether it must have them."""
    if found := flaws(folder, weights):
        raise InputError([Problem(str(folder), "model", flaw.reason, flaw.fix) for flaw in found])
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, **no_code())
    except Exception as error:  # of many types
        raise InputError([Problem(str(folder), "model", f"transformers cannot read its config.json: {error}",
                                  "copy it again")]) from None
    inputs = _inputs(folder)
    by_debzero = inputs is not None
    task = inputs.task if inputs else _task_of(folder, config)
    tokenizer = load_tokenizer(str(folder), list, 0)
    if type(size := getattr(config, "vocab_size", None)) is int and highest(tokenizer) >= size:
        raise InputError([Problem(str(folder), "model", f"its tokenizer has tokens up to number {highest(tokenizer)}, "
                                  f"but the model's embedding holds {size}", OWN)])
    positions = usable_positions(config, tokenizer.pad_token_id)
    if inputs is None:
        inputs = Inputs(task=task, max_length=min(LONGEST, tokenizer.model_max_length))
    labels = [str(config.id2label[number]) for number in sorted(config.id2label)] if (
        task == "classification" or task == "text-to-text" and by_debzero and inputs.answers == "classes") else []
    limit = CONTINUATION if task == "causal-lm" else inputs.max_answer_length if by_debzero else ANSWER
    return Trained(folder, task, tasks.TASKS[task].auto, inputs, by_debzero, labels, limit, positions, config,
                   tokenizer)


def _inputs(folder: Path) -> Optional[Inputs]:
    """What debzero says of the model's inputs; of one that an earlier release saved, beside it in its run's folder."""
    if found := as_inputs(read_json(folder / MODEL_FACTS).get("inputs")):
        return found
    run = RunFolder(str(folder.parent))
    record = run.run_record() if folder.name == run.model.name else None
    if record is None:
        return None
    settings = {**record.others, **record.weights}
    return as_inputs({key.replace("data.", ""): value for key, value in settings.items()
                      if key == "task" or key.startswith("data.")})


def _task_of(folder: Path, config: Any) -> str:
    """The task of a model that debzero did not save, by the class that its configuration names."""
    from transformers.models.auto import modeling_auto

    names = config.architectures or ["nothing"]
    for task in ("classification", "causal-lm", "text-to-text"):
        if names[0] in getattr(modeling_auto, tasks.TASKS[task].models).values():
            break
    else:
        raise InputError([Problem(
            str(folder / "config.json"), "architectures", f"names {names[0]}, which has no answers to texts",
            "use a model for sequence classification, causal language modelling or text-to-text")])
    if task == "classification" and config.problem_type == "multi_label_classification":
        raise InputError([Problem(str(folder / "config.json"), "problem_type", "multi-label models are not supported",
                                  "use a model with one class for each text")])
    if task == "classification" and (config.num_labels == 1 or config.problem_type == "regression"):
        return "regression"
    return task


def incomplete(folder: Path, missing: list[str]) -> UserError:
    """What to say of weights that lack some of the model's."""
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return UserError(f"{folder}: its weights have no {missing[0]}{more}, so its answers would be chance",
                     "give the folder of a model that was trained for its task, with all of its weights")
