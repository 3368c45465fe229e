"""A folder with a model, opened: whether its configuration, tokenizer and weights belong together and suit the job."""
from __future__ import annotations

import copy
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

from debzero.base.errors import Problem, UserError
from debzero.base.files import read_json
from debzero.base.text import count_text
from debzero.job.schema import Job
from debzero.model import inputs, tasks
from debzero.model.checkpointing import checkpointing_problems
from debzero.model.divisible import parallel_problems
from debzero.model.folder import Flaw, flaws, no_code
from debzero.model.positions import position_problems
from debzero.model.settings import wrong_settings
from debzero.model.tokenizer import load_tokenizer
from debzero.model.tokens import token_problems
from debzero.model.weights import Fit, fit, misfits, tensors

LONGEST_BUILD = 5.0  # seconds that a check tries to build a model; those that there are take one or two
TRIED = 8           # tokens of a sample that a check tries a model with
ANOTHER = "give a folder that save_pretrained wrote with a transformers release as new as this one, or an older one"


def opened_problems(job: Job, file: str, folder: Path, labels: Optional[list[str]] = None) -> list[Problem]:
    """All that is wrong with the model in `folder`, which has a config.json. Warnings are among it. `labels`: the
    classes of the data, where they are known."""
    found = [_problem(file, folder, flaw) for flaw in flaws(folder)]
    config = None
    if not found:
        config, found = _configured(job, file, folder)
    if config is None or found:
        return found
    found += [*checkpointing_problems(job, file, config), *kernel_problems(job, file, config),
              *language_problems(job, file, config), *parallel_problems(job, file, config)]
    model = None
    try:
        model = skeleton(job, config, labels)
    except NotImplementedError:  # an operation that the meta device lacks, or too long: the real one may still do
        pass
    except Exception as error:  # each model type checks its settings in its own way, some only in its layers
        return [*found, _problem(file, folder, Flaw(f"transformers cannot build it: {type(error).__name__}: {error}",
                                                    "correct its config.json, or use another model"))]
    if model is not None:
        fits = fit(model, tensors(folder))
        wrong = list(misfits(fits, config.model_type, has_new_head(job)))
        if not wrong and (reason := refusal(job, model)):
            wrong = [Flaw(f"its sizes do not fit each other: {reason}", "correct its config.json, or use another one")]
        found += [_problem(file, folder, flaw) for flaw in wrong]
        found += [] if wrong else [Problem(file, "model", f"{folder}: {flaw.reason}", flaw.fix, severity="warning")
                                   for flaw in _head(job, fits, config, labels)]
    try:
        tokens = load_tokenizer(str(folder), list, job.data.max_length)
    except UserError as error:
        return [*found, Problem(file, "model", error.reason, error.fix)]
    return [*found, *token_problems(job, file, config, tokens),
            *position_problems(job, file, config, tokens.pad_token_id)]


def _problem(file: str, folder: Path, flaw: Flaw) -> Problem:
    return Problem(file, "model", f"{folder}: {flaw.reason}", flaw.fix)


def _configured(job: Job, file: str, folder: Path) -> tuple[Any, list[Problem]]:
    """The configuration, and what is wrong with it alone."""
    from transformers import AutoConfig

    values = read_json(folder / "config.json")
    wrong = [_problem(file, folder, Flaw(f"its config.json has a {key} that {reason}", "copy config.json again"))
             for key, reason, _ in wrong_settings(values["model_type"], values)]
    if wrong:
        return None, wrong
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, **no_code())
    except Exception as error:  # of many types
        return None, [_problem(file, folder, Flaw(
            f"transformers cannot read its config.json: {type(error).__name__}: {error}", ANOTHER))]
    task = tasks.TASKS[job.task]
    if not tasks.suits(task, config.model_type):
        return None, [Problem(file, "model", f"{config.model_type} models cannot do the task {job.task}",
                              "choose another model, or another task")]
    return config, []


def skeleton(job: Job, config: Any, labels: Optional[list[str]] = None, seconds: Optional[float] = None) -> Any:
    """The model with the task's head, on the meta device: without memory for its weights. Raises whatever transformers
    does, and a NotImplementedError after `seconds` (LONGEST_BUILD). `labels`: the classes, where they are known."""
    import transformers

    from debzero.model.meta import OnMeta

    task, config = tasks.TASKS[job.task], copy.deepcopy(config)
    if labels:
        config.num_labels = len(labels)
    config.pad_token_id = 0  # build.config() sets the tokenizer's, which is in the vocabulary; the type's may not be
    tasks.look_back_only(task, config)
    try:
        with OnMeta(LONGEST_BUILD if seconds is None else seconds):
            model = getattr(transformers, task.auto).from_config(config, **no_code())
    except RuntimeError as error:
        if "meta" in str(error):  # what it does with its tensors, it cannot do there
            raise NotImplementedError(str(error)) from None
        raise
    if more := inputs.needs_more(type(model)):
        raise ValueError(f"it needs more than texts: {', '.join(more)}")
    return model


def kernel_problems(job: Job, file: str, config: Any) -> list[Problem]:
    """Why a model, such as Jamba, would stop: by transformers' default it takes Mamba's kernels or nothing."""
    import torch

    packages = [name for name in ("mamba_ssm", "causal_conv1d") if find_spec(name) is None]
    if not getattr(config, "use_mamba_kernels", False) or torch.cuda.is_available() and not packages:
        return []
    lacking = f"the Python package {' and '.join(packages)}" if packages else "a GPU"
    key, place = ("model", "its config.json") if isinstance(job.model, str) else ("model.use_mamba_kernels", "`model:`")
    return [Problem(file, key, f"{config.model_type} models use Mamba's kernels here (use_mamba_kernels), which need "
                    f"{lacking}", f"write use_mamba_kernels: false in {place}; training then is slower")]


def language_problems(job: Job, file: str, config: Any) -> list[Problem]:
    """Why X-MOD would stop: each language has layers of its own, and it must know whose to use."""
    languages = getattr(config, "languages", None)
    if config.model_type != "xmod" or not languages or config.default_language in languages:
        return []
    key, place = ("model", "its config.json") if isinstance(job.model, str) else ("model.default_language", "`model:`")
    chosen = config.default_language
    return [Problem(file, key, f"xmod models have layers for each language ({', '.join(map(str, languages[:8]))}), and "
                    + ("the default_language says none" if chosen is None else f"{chosen!r} is none of them"),
                    f"write default_language: {languages[0]}, or the data's language, in {place}")]


def refusal(job: Job, model: Any) -> str:
    """What torch says to a batch for a model on the meta device whose sizes do not fit each other; empty if nothing."""
    import torch

    from debzero.model.meta import OnMeta, autocast_accepts_meta

    def tensor(*shape: int) -> Any:
        return torch.empty(*shape, dtype=torch.long, device="meta")

    batch = {name: tensor(2, TRIED) for name in inputs.input_names(model.config)}
    if tasks.TASKS[job.task] is tasks.TextToText:
        batch["labels"] = tensor(2, TRIED)
    try:
        with torch.no_grad(), autocast_accepts_meta(), OnMeta(LONGEST_BUILD):
            model(**batch)
    except (RuntimeError, ZeroDivisionError) as error:  # NotImplementedError: an operation that the meta device lacks
        text = next(iter(str(error).splitlines()), "")
        return "" if isinstance(error, NotImplementedError) or "meta" in text.lower() else text[:200]
    except Exception:  # of the trial itself, which has no words; the training has
        return ""
    return ""


def has_new_head(job: Job) -> bool:
    """Whether the task needs a head of its own, which is made where the model comes with none or another."""
    return tasks.TASKS[job.task].auto == "AutoModelForSequenceClassification"


def _head(job: Job, fits: Fit, config: Any, labels: Optional[list[str]]) -> Iterator[Flaw]:
    """What becomes of the folder's head: it is trained further if it has the data's number of classes."""
    there = [str(name) for name in config.id2label.values()]
    named = any(name != f"LABEL_{number}" for number, name in enumerate(there))
    if not has_new_head(job):
        if fits.headless:
            yield Flaw("its weights have nothing of the head that predicts tokens, which starts at random",
                       "use the whole model, as it was saved with its language-modelling head, if there is one")
    elif fits.heads:
        name, (shape, _) = next(iter(fits.heads.items()))
        here = f"the data's {len(labels)} classes" if labels and len(labels) > 1 else "the task"
        new = "training starts with a new one"
        if labels is None and job.task == "classification":  # the data may have as many as the head
            here = f"the {len(there)} classes that its config.json names"
            new += ", unless the data's classes fit it"
        rows = count_text(shape[0] if shape else 1, "row")
        yield Flaw(f"its head ({name}: {rows}) does not fit {here}: {new}",
                   "use data with the head's classes, if it was meant to be trained further")
    elif labels and len(labels) > 1 and named and not fits.headless and labels != there:
        other = (f"its config.json names {len(there)}" if len(there) != len(labels) else
                 "in another order" if sorted(labels) == sorted(there) else "by other names")
        yield Flaw(f"its head has as many classes as the data ({len(labels)}), but {other} ({_few(there)}; in the data "
                   f"{_few(labels)}): training starts from it nevertheless",
                   "give the classes in the data the head's names, if they are the same")


def _few(names: list[str]) -> str:
    return ", ".join(name[:20] for name in names[:4]) + (", ..." if len(names) > 4 else "")
