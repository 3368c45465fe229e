"""The tasks a model can be trained for, and what in a job contradicts its task."""
from __future__ import annotations

import math
from typing import Any, Optional

import numpy as np

from debzero.base.errors import Problem, UserError
from debzero.base.text import count_text
from debzero.job.schema import SECTIONS_DATASET, Job
from debzero.model.free_text import FreeText
from debzero.model.task import IGNORED, Forward, Model, Samples, Task, counts, inputs, mean_of, rows_of, token_losses


class Classification(Task):
    """One class per sample, from a new head on the model. F1 is that of class 1 for two classes, as in GLUE, else the
    mean over the classes; Matthews' correlation is GLUE's score for CoLA."""

    auto, models = "AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"
    scores = ("accuracy", "f1", "matthews", "loss")

    def losses(self, forward: Forward, batch: dict[str, Any]) -> Any:
        return self._losses(forward(**inputs(batch)).logits, batch)

    @staticmethod
    def _losses(logits: Any, batch: dict[str, Any]) -> Any:
        import torch.nn.functional as F

        return F.cross_entropy(logits.float(), batch["labels"], reduction="none")

    def answers(self, forward: Model, batch: dict[str, Any]) -> np.ndarray:
        logits = forward(**inputs(batch)).logits
        return rows_of(self._losses(logits, batch), logits.argmax(-1))

    def metrics(self, answers: np.ndarray, prepared: Samples) -> dict[str, float]:
        truth = np.asarray(prepared.held_out.labels)
        return {**self._scores(truth, answers[:, 1].astype(np.int64), len(prepared.labels)),
                "loss": float(answers[:, 0].mean())}

    @staticmethod
    def _scores(truth: np.ndarray, answers: np.ndarray, classes: int) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        f1 = f1_score(truth, answers, average="binary" if classes == 2 else "macro", zero_division=0)
        return {"accuracy": float(accuracy_score(truth, answers)), "f1": float(f1),
                "matthews": float(matthews_corrcoef(truth, answers))}

    def baseline(self, prepared: Samples) -> dict[str, float]:
        """Always the most frequent class of the training samples; for the loss, each class with its frequency."""
        truth = np.asarray(prepared.held_out.labels)
        seen = np.bincount(prepared.train.labels, minlength=len(prepared.labels))
        scores = self._scores(truth, np.full_like(truth, seen.argmax()), len(prepared.labels))
        return {**scores, "loss": float(-np.log((seen + 1) / (seen + 1).sum())[truth].mean())}


class Regression(Task):
    """One number per sample. If all answers or all labels are the same, correlations count as 0."""

    auto, models = Classification.auto, Classification.models
    scores = ("pearson", "spearman", "loss")
    label = "value"

    def losses(self, forward: Forward, batch: dict[str, Any]) -> Any:
        return (self._values(forward, batch) - batch["labels"]) ** 2

    @staticmethod
    def _values(forward: Forward, batch: dict[str, Any]) -> Any:
        return forward(**inputs(batch)).logits.float().squeeze(-1)

    def answers(self, forward: Model, batch: dict[str, Any]) -> np.ndarray:
        values = self._values(forward, batch)
        return rows_of((values - batch["labels"]) ** 2, values)

    def metrics(self, answers: np.ndarray, prepared: Samples) -> dict[str, float]:
        from scipy.stats import pearsonr, spearmanr

        truth, values = np.asarray(prepared.held_out.labels, np.float64), answers[:, 1]
        varies = len(truth) > 1 and np.ptp(truth) > 0 and np.ptp(values) > 0
        correlations = {name: float(measure(truth, values)[0]) if varies else 0.0
                        for name, measure in (("pearson", pearsonr), ("spearman", spearmanr))}
        return {**correlations, "loss": float(answers[:, 0].mean())}

    def baseline(self, prepared: Samples) -> dict[str, float]:
        """Always the mean of the training samples."""
        misses = np.asarray(prepared.held_out.labels, np.float64) - np.mean(prepared.train.labels, dtype=np.float64)
        return {"pearson": 0.0, "spearman": 0.0, "loss": float((misses**2).mean())}


class CausalLM(Task):
    """Predicts each token from those before it; a sample is a block of text."""

    auto, models = "AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
    scores = ("loss", "perplexity")
    label = "nothing"

    def losses(self, forward: Forward, batch: dict[str, Any]) -> Any:
        import torch.nn.functional as F

        # Targets are shifted to their logits; to drop the last logits instead would copy all of them. The model needs
        # no mask: padding comes last, and tokens see only those before them.
        targets = F.pad(batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)[:, 1:], (0, 1),
                        value=IGNORED)
        return mean_of(token_losses(forward(input_ids=batch["input_ids"]).logits, targets), targets)

    def answers(self, forward: Model, batch: dict[str, Any]) -> np.ndarray:
        return rows_of(self.losses(forward, batch))

    def metrics(self, answers: np.ndarray, prepared: Samples) -> dict[str, float]:
        loss = float(answers[:, 0].mean())
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}  # a float holds no larger ones

    def baseline(self, prepared: Samples) -> dict[str, float]:
        """Each token with its frequency in the training samples; 1 is added to each count, so that none is 0."""
        vocabulary = len(prepared.tokenizer)
        seen, held_out = (counts(side.ids, vocabulary) for side in (prepared.train, prepared.held_out))
        loss = float(-(held_out * np.log((seen + 1) / (seen + 1).sum())).sum() / held_out.sum())
        return {"loss": loss, "perplexity": math.exp(loss)}


class TextToText(Classification):
    """One class per sample, whose name the decoder writes. The answer is the class with the most likely name."""

    auto, models = "AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"

    def bind(self, tokenizer: Any, labels: list[str]) -> np.ndarray:
        names = [tuple(tokenizer(label)["input_ids"]) for label in labels]
        same = next(((labels[names.index(ids)], labels[i]) for i, ids in enumerate(names) if ids in names[:i]), None)
        if same:
            raise UserError(f"the model's tokenizer reads the labels {same[0]!r} and {same[1]!r} as the same text",
                            "give the classes names that differ in more than unknown characters or capitals")
        self.targets = np.full((len(labels), max(map(len, names))), IGNORED, np.int64)
        for row, ids in zip(self.targets, names):
            row[: len(ids)] = ids
        return self.targets

    def losses(self, forward: Forward, batch: dict[str, Any]) -> Any:
        # The model derives the decoder's inputs from the labels. Its own loss is not used: it is the batch's mean.
        targets = batch["labels"]
        return mean_of(token_losses(forward(**batch).logits, targets), targets)

    def answers(self, forward: Model, batch: dict[str, Any]) -> np.ndarray:
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        output, targets = forward(**batch), batch["labels"]
        losses = mean_of(token_losses(output.logits, targets), targets)
        encoded = {**inputs(batch, "input_ids"), "encoder_outputs": BaseModelOutput(output.encoder_last_hidden_state)}
        name_losses = []
        for name in torch.as_tensor(self.targets, device=targets.device):
            names = name.expand(len(targets), -1).contiguous()
            name_losses.append(token_losses(forward(**encoded, labels=names).logits, names).sum(1))
        return rows_of(losses, torch.stack(name_losses, 1).argmin(1))

    def baseline(self, prepared: Samples) -> dict[str, float]:
        """As for classification, but the loss is per token of the name."""
        truth, tokens = np.asarray(prepared.held_out.labels), (self.targets != IGNORED).sum(1)
        seen = np.bincount(prepared.train.labels, minlength=len(prepared.labels)) + 1
        return {**super().baseline(prepared), "loss": float(-(np.log(seen / seen.sum()) / tokens)[truth].mean())}


TASKS: dict[str, type[Task]] = {"classification": Classification, "regression": Regression, "causal-lm": CausalLM,
                                "text-to-text": TextToText}
MOST_OF_FEW = 10  # labels that are taken for a closed set, however few rows there are
KINDS: tuple[type[Task], ...] = (*TASKS.values(), FreeText)
SCORES = tuple(dict.fromkeys(score for task in KINDS for score in task.scores))


def kind_of(job: Job) -> type[Task]:
    return FreeText if job.task == "text-to-text" and job.data.answers == "text" else TASKS[job.task]


def of(job: Job) -> Task:
    """The job's task."""
    kind = kind_of(job)
    return FreeText(job.train.metric, job.data.max_answer_length) if kind is FreeText else kind(job.train.metric)


def not_closed(job: Job, labels: int, rows: int) -> Optional[tuple[str, str]]:
    """Why so many different labels on so many training rows are no closed set that a text-to-text model could choose
    from, and what to do; None where they may be one."""
    if kind_of(job) is not TextToText or labels <= MOST_OF_FEW or 2 * labels <= rows:
        return None
    return (f"the {rows} training rows have {labels} different texts in {job.data.label}, but with `answers: classes` "
            "the model only chooses among those",
            "set `answers: text` under data, with which it writes texts of its own, or name a column of classes in "
            "data.label")


def problems(job: Job, file: str) -> list[Problem]:
    """What in the job contradicts its task."""
    found, task, data = [], kind_of(job), job.data
    if data.answers == "text" and task is not FreeText:
        found.append(Problem(file, "data.answers", f"task {job.task} does not answer with a text",
                             "remove it, or set task: text-to-text"))
    if job.train.metric not in ("auto", *task.scores):
        written = f" with data.answers: {data.answers}" if job.task == "text-to-text" else ""
        found.append(Problem(file, "train.metric", f"task {job.task}{written} has no {job.train.metric}",
                             f"use one of: {', '.join(task.scores)}"))
    if task is CausalLM and len(data.text) > 1:
        found.append(Problem(file, "data.text", f"task causal-lm reads one column, not {len(data.text)}",
                             f"name one, for example `text: {data.text[0]}`"))
    if data.label in data.text and task not in (CausalLM, FreeText):
        found.append(Problem(file, "data.text", f"the column {data.label} is also the label, so the model would read "
                             "the answer", "name the column of texts in data.text, that of the answers in data.label"))
    if data.prefix and (task is CausalLM or len(data.prefix) != len(data.text)):
        wrong = "task causal-lm takes no prefix" if task is CausalLM else (
            f"{count_text(len(data.prefix), 'text')} cannot come before {count_text(len(data.text), 'column')}")
        found.append(Problem(file, "data.prefix", wrong, "give as many as data.text has columns, or remove it"))
    if task is Regression and data.dataset == SECTIONS_DATASET:
        found.append(Problem(file, "task", "the labels of debian-sections are classes, not numbers",
                             "set task: classification"))
    return found + _unsuited(job, task, file)


def look_back_only(task: type[Task], config: Any) -> None:
    """Let a model of this configuration see no later tokens where the task is to predict them, as a BERT would."""
    if task is CausalLM and hasattr(config, "is_decoder"):
        config.is_decoder = True


def suits(task: type[Task], kind: str) -> bool:
    """Whether transformers can do the task with models of this type, such as bert."""
    from transformers.models.auto import modeling_auto

    return kind in getattr(modeling_auto, task.models)


def _unsuited(job: Job, task: type[Task], file: str) -> list[Problem]:
    from transformers import CONFIG_MAPPING

    kind = None if isinstance(job.model, str) else job.model["type"]
    # An unknown type is reported by model/checks.py.
    if kind is None or kind not in CONFIG_MAPPING or suits(task, kind):
        return []
    return [Problem(file, "model.type", f"{kind} models cannot do the task {job.task}",
                    "use t5 or bart" if job.task == "text-to-text" else "use gpt2" if task is CausalLM else "use bert")]
