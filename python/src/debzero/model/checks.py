"""Checks of a job's model that need no hub, and the disk space that the model needs."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Optional

from debzero.base.errors import Problem
from debzero.base.files import unreadable
from debzero.base.text import did_you_mean
from debzero.job.local_files import did_you_mean_path
from debzero.job.schema import Job
from debzero.model import settings, tasks
from debzero.model.checkpointing import checkpointing_problems
from debzero.model.divisible import parallel_problems
from debzero.model.folder import adapter, flaws, weights_to_run_alone
from debzero.model.opened import kernel_problems, language_problems, opened_problems, refusal, skeleton
from debzero.model.positions import local_config, position_problems


def model_problems(job: Job, file: str, labels: Optional[list[str]] = None) -> list[Problem]:
    """What is wrong with the model, as far as can be known without the hub. Warnings are among it. `labels`: the
    classes of the data, where they are known."""
    found = _in_folder(job, file, labels) if isinstance(job.model, str) else _from_scratch(job, file, job.model)
    if job.revision != "main" and (isinstance(job.model, dict) or Path(job.model).is_absolute()):
        found.append(Problem(file, "revision", "only a model of the hub has revisions, and this one is local or from "
                             "scratch", "remove it, or name the hub's model in `model:`"))
    return found


def _in_folder(job: Job, file: str, labels: Optional[list[str]]) -> list[Problem]:
    folder = Path(str(job.model))
    if not folder.is_absolute():
        config = local_config(job)
        if config is None:
            return []
        place = Path(config.name_or_path).parent  # of config.json in the hub's cache, where the weights may be, too
        return _settled(job, file, config) if flaws(place) else opened_problems(job, file, place, labels)
    reason = unreadable(folder) or unreadable(folder / "config.json")
    if not reason and (folder / "config.json").is_file():
        return opened_problems(job, file, folder, labels)
    if not reason and (folder / "adapter_config.json").is_file():
        return [Problem(file, "model", f"{folder}: {(flaw := adapter(folder)).reason}", flaw.fix)]
    near = ""
    if reason:
        missing = f"cannot be used: it, or its config.json, {reason}"
    elif folder.is_dir():
        missing, inside = "has no config.json", sorted(path.parent for path in folder.glob("*/config.json"))
        near = f"did you mean {inside[-1]}?" if inside else (
            other.fix if (other := weights_to_run_alone(folder)) else "")
    else:
        missing, near = "is a file" if folder.exists() else "does not exist", did_you_mean_path(folder, model=True)
    return [Problem(file, "model", f"the folder {folder} {missing}",
                    near or "give a folder that save_pretrained wrote, or a hub id such as bert-large-uncased")]


def _from_scratch(job: Job, file: str, model: dict[str, Any]) -> list[Problem]:
    from transformers import CONFIG_MAPPING

    kind = model["type"]
    if kind not in CONFIG_MAPPING:
        return [Problem(file, "model.type", f"{kind!r} is not known to transformers",
                        did_you_mean(kind, ["bert", "roberta", "distilbert", "electra", "gpt2", "t5"]))]
    try:
        usual = CONFIG_MAPPING[kind]()
    except Exception as error:  # models that are made of others
        return [Problem(file, "model.type", f"{kind} models cannot be made from these settings: {error}",
                        "use another type, or name a folder or a model of the hub")]
    known = sorted({*usual.to_dict(), *usual.attribute_map})
    problems = [Problem(file, f"model.{key}", f"is not a setting of {kind} models", did_you_mean(key, known))
                for key in model if key != "type" and key not in known]
    problems += [Problem(file, f"model.{key}", reason, fix) for key, reason, fix in settings.wrong_settings(
        kind, {key: value for key, value in settings.numbers(model).items() if key in known})]
    config = usual
    if not problems:
        try:
            config = settings.from_scratch(model)
            suits = tasks.suits(tasks.TASKS[job.task], kind)  # else tasks.problems() reports it
            if reason := refusal(job, skeleton(job, config)) if suits else "":
                problems = [Problem(file, "model", f"its sizes do not fit each other: {reason}", "correct them, or "
                                    "remove them for the defaults")]
        except NotImplementedError:  # an operation that the meta device lacks, or too long: the real one may still do
            pass
        except Exception as error:  # each model type checks its settings in its own way, some only in its layers
            problems.append(Problem(file, "model", f"transformers cannot build it: {type(error).__name__}: {error}",
                                    "correct the setting, or remove it for the default"))
    # The tokenizer from scratch has its padding token at 0.
    return problems or _settled(job, file, config, padding=0)


def _settled(job: Job, file: str, config: Any, padding: Optional[int] = None) -> list[Problem]:
    """What the job asks of a model that its configuration rules out."""
    return [*position_problems(job, file, config, padding), *checkpointing_problems(job, file, config),
            *kernel_problems(job, file, config), *language_problems(job, file, config),
            *parallel_problems(job, file, config)]


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
            config = settings.from_scratch(job.model)
            hidden, layers = config.hidden_size, config.num_hidden_layers
            parameters = 12 * layers * hidden**2 + int(config.vocab_size) * hidden
        except Exception:  # model_problems() reports it, or the type has no such sizes
            return None
    return 52 * parameters or None
