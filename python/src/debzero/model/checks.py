"""Checks of a job's model that need no hub, and the disk space that the model needs."""
from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, Optional

from debzero.base.errors import Problem
from debzero.base.files import unreadable
from debzero.base.text import did_you_mean
from debzero.job.local_files import did_you_mean_path
from debzero.job.schema import Job
from debzero.model import build, tasks
from debzero.model.checkpointing import checkpointing_problems
from debzero.model.folder import flaws, no_code
from debzero.model.positions import local_config, position_problems

LONGEST_BUILD = 5.0  # seconds that a check tries to build a model; those that there are take one or two


def model_problems(job: Job, file: str) -> list[Problem]:
    """What is wrong with the model, as far as can be known without the hub."""
    found = _in_folder(job, file) if isinstance(job.model, str) else _from_scratch(job, file, job.model)
    if job.revision != "main" and (isinstance(job.model, dict) or Path(job.model).is_absolute()):
        found.append(Problem(file, "revision", "only a model of the hub has revisions, and this one is local or from "
                             "scratch", "remove it, or name the hub's model in `model:`"))
    return found


def _in_folder(job: Job, file: str) -> list[Problem]:
    folder = Path(str(job.model))
    reason = unreadable(folder) or unreadable(folder / "config.json")
    if folder.is_absolute() and (reason or not (folder / "config.json").is_file()):
        missing = f"cannot be used: it, or its config.json, {reason}" if reason else (
            "has no config.json" if folder.is_dir() else "does not exist")
        near = "" if reason or folder.is_dir() else did_you_mean_path(folder, model=True)
        return [Problem(file, "model", f"the folder {folder} {missing}", near or
                        "give a folder that save_pretrained wrote, or a hub id such as bert-large-uncased")]
    found = flaws(folder) if folder.is_absolute() else []
    config = local_config(job)
    return [*(Problem(file, "model", f"{folder}: {flaw.reason}", flaw.fix) for flaw in found),
            *(_settled(job, file, config) if config is not None else [])]


def _from_scratch(job: Job, file: str, model: dict[str, Any]) -> list[Problem]:
    from transformers import CONFIG_MAPPING

    kind = model["type"]
    if kind not in CONFIG_MAPPING:
        return [Problem(file, "model.type", f"{kind!r} is not known to transformers",
                        did_you_mean(kind, ["bert", "roberta", "distilbert", "electra", "gpt2", "t5"]))]
    settings = CONFIG_MAPPING[kind]()
    known = sorted({*settings.to_dict(), *settings.attribute_map})
    problems = [Problem(file, f"model.{key}", f"is not a setting of {kind} models", did_you_mean(key, known))
                for key in model if key != "type" and key not in known]
    for key, value in model.items():
        counts = isinstance(key, str) and key != "vocab_size" and not key.endswith("_id")
        usual = getattr(settings, key, None) if counts else None
        if type(usual) is int and usual > 0 and (type(value) is not int or not 0 <= value < 2**31):
            problems.append(Problem(file, f"model.{key}", f"must be a number such as {usual}, not {str(value)[:40]!r}",
                                    "write a whole number, or remove it for the default"))
    if not problems:
        try:
            settings = build.from_scratch(model)
            _try_to_build(job, settings)
        except NotImplementedError:  # an operation that the meta device lacks, or too long: the real one may still do
            pass
        except Exception as error:  # each model type checks its settings in its own way, some only in its layers
            problems.append(Problem(file, "model", f"transformers cannot build it: {type(error).__name__}: {error}",
                                    "correct the setting, or remove it for the default"))
    # The tokenizer from scratch has its padding token at 0.
    return problems or _settled(job, file, settings, padding=0)


def _settled(job: Job, file: str, config: Any, padding: Optional[int] = None) -> list[Problem]:
    """What the job asks of a model that its configuration rules out."""
    return [*position_problems(job, file, config, padding), *checkpointing_problems(job, file, config)]


def _try_to_build(job: Job, settings: Any) -> None:
    """Build the model with the task's head, without memory for its weights. Raises whatever transformers does."""
    import transformers

    from debzero.model.meta import OnMeta

    task = tasks.of(job)
    if not tasks.suits(type(task), settings.model_type):
        return  # tasks.problems() reports it
    settings = copy.deepcopy(settings)
    settings.pad_token_id = 0  # config() sets the tokenizer's, which is in the vocabulary; the type's own may not be
    if job.task == "causal-lm" and hasattr(settings, "is_decoder"):
        settings.is_decoder = True  # as build() does
    with OnMeta(LONGEST_BUILD):
        getattr(transformers, task.auto).from_config(settings, **no_code())


def bytes_needed(job: Job) -> Optional[int]:
    """Bytes of disk for three checkpoints and the final weights; None if the model's size is not known without the hub.

    A checkpoint holds the weights and Adam's two moments in fp32 (12 bytes per parameter, 16 in half precision). Two
    are kept while a third is written, and the final weights take 4: 3 x 16 + 4 bytes per parameter at most.
    """
    if isinstance(job.model, str):
        is_folder = Path(job.model).is_absolute() and os.path.isdir(job.model)
        files = Path(job.model).glob("*.safetensors") if is_folder else []
        parameters = sum(os.path.getsize(file) for file in files if os.path.isfile(file)) // 4
    else:
        try:
            settings = build.from_scratch(job.model)
            hidden, layers = settings.hidden_size, settings.num_hidden_layers
            parameters = 12 * layers * hidden**2 + int(settings.vocab_size) * hidden
        except Exception:  # model_problems() reports it, or the type has no such sizes
            return None
    return 52 * parameters or None
