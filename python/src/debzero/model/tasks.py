"""What a model is trained for: its loss, its answers, and how they are scored.

A task sees the model only as `forward(**inputs)`, which returns transformers' output, so that it is the same under DDP,
DeepSpeed and torch.compile. A batch is the collator's dictionary: tensors of n rows on the model's device.
"""
from __future__ import annotations

import math
from typing import Any, Callable, Protocol

import numpy as np

from debzero.base.errors import Problem, UserError
from debzero.job.schema import SECTIONS_DATASET, Job

Forward = Callable[..., Any]
IGNORED = -100  # a place where no token is asked for
PIECE = 2**24   # tokens counted at a time


class Side(Protocol):
    """Training or held-out samples: the token ids of all (int[tokens]) and each one's label (int or float[n])."""

    @property
    def ids(self) -> np.ndarray: ...

    @property
    def labels(self) -> np.ndarray: ...


class Samples(Protocol):
    """A job's samples, as far as scores need them; data.tokens.Prepared is one. `labels`: the classes' names."""

    @property
    def train(self) -> Side: ...

    @property
    def held_out(self) -> Side: ...

    @property
    def labels(self) -> list[str]: ...

    @property
    def tokenizer(self) -> Any: ...


class Task:
    """What the tasks have in common. `auto`: transformers' class for it; `models`: its list of models that have one."""

    auto, models = "", ""
    scores: tuple[str, ...] = ()  # the metrics, the main one first
    label = "class"               # what a row's label is: class, value, or nothing

    def __init__(self, metric: str) -> None:
        self.main = self.scores[0] if metric == "auto" else metric

    def bind(self, tokenizer: Any, labels: list[str]) -> Any:
        """Learn the label's names; returns the targets (int64[classes, words]) where the model answers in words."""

    def losses(self, forward: Forward, batch: dict[str, Any]) -> Any:
        """float32[n]: each sample's own loss."""
        raise NotImplementedError

    def answers(self, forward: Forward, batch: dict[str, Any]) -> np.ndarray:
        """float64[n, k]: each sample's loss, and then (where there is one) the answer."""
        raise NotImplementedError

    def metrics(self, answers: np.ndarray, prepared: Samples) -> dict[str, float]:
        """The scores of the answers to all held-out samples, in their order."""
        raise NotImplementedError

    def baseline(self, prepared: Samples) -> dict[str, float]:
        """The scores of the best guess that looks at no sample, on the held-out samples."""
        raise NotImplementedError

    @staticmethod
    def higher_is_better(metric: str) -> bool:
        return metric not in ("loss", "perplexity")


def _inputs(batch: dict[str, Any], *without: str) -> dict[str, Any]:
    return {name: tensor for name, tensor in batch.items() if name not in ("labels", *without)}


def _rows(*columns: Any) -> np.ndarray:
    """Tensors of n values each as float64[n, k], in one transfer from the device."""
    import torch

    return np.asarray(torch.stack([column.detach().double() for column in columns], 1).cpu().numpy())


class Classification(Task):
    """One class per sample, by a new head on the model. F1 is that of class 1 for two classes (as GLUE counts it), else the
    mean over the classes; Matthews' correlation is GLUE's score for CoLA."""

    auto, models = "AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"
    scores = ("accuracy", "f1", "matthews", "loss")

    def losses(self, forward: Forward, batch: dict[str, Any]) -> Any:
        return self._losses(forward(**_inputs(batch)).logits, batch)

    @staticmethod
    def _losses(logits: Any, batch: dict[str, Any]) -> Any:
        import torch.nn.functional as F

        return F.cross_entropy(logits.float(), batch["labels"], reduction="none")

    def answers(self, forward: Forward, batch: dict[str, Any]) -> np.ndarray:
        logits = forward(**_inputs(batch)).logits
        return _rows(self._losses(logits, batch), logits.argmax(-1))

    def metrics(self, answers: np.ndarray, prepared: Samples) -> dict[str, float]:
        truth = np.asarray(prepared.held_out.labels)
        return {**self._scores(truth, answers[:, 1].astype(np.int64), len(prepared.labels)),
                "loss": float(answers[:, 0].mean())}

    @staticmethod
    def _scores(truth: np.ndarray, found: np.ndarray, classes: int) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        f1 = f1_score(truth, found, average="binary" if classes == 2 else "macro", zero_division=0)
        return {"accuracy": float(accuracy_score(truth, found)), "f1": float(f1),
                "matthews": float(matthews_corrcoef(truth, found))}

    def baseline(self, prepared: Samples) -> dict[str, float]:
        """What always answering the commonest training class scores; the loss is that of answering as often as each
        came."""
        truth, seen = np.asarray(prepared.held_out.labels), np.bincount(prepared.train.labels,
                                                                        minlength=len(prepared.labels))
        scores = self._scores(truth, np.full_like(truth, seen.argmax()), len(prepared.labels))
        return {**scores, "loss": float(-np.log((seen + 1) / (seen + 1).sum())[truth].mean())}


class Regression(Task):
    """One number per sample. Correlations with answers that are all the same count as 0."""

    auto, models = Classification.auto, Classification.models
    scores = ("pearson", "spearman", "loss")
    label = "value"

    def losses(self, forward: Forward, batch: dict[str, Any]) -> Any:
        return (self._values(forward, batch) - batch["labels"]) ** 2

    @staticmethod
    def _values(forward: Forward, batch: dict[str, Any]) -> Any:
        return forward(**_inputs(batch)).logits.float().squeeze(-1)

    def answers(self, forward: Forward, batch: dict[str, Any]) -> np.ndarray:
        values = self._values(forward, batch)
        return _rows((values - batch["labels"]) ** 2, values)

    def metrics(self, answers: np.ndarray, prepared: Samples) -> dict[str, float]:
        from scipy.stats import pearsonr, spearmanr

        truth, found = np.asarray(prepared.held_out.labels, np.float64), answers[:, 1]
        told = len(truth) > 1 and np.ptp(truth) > 0 and np.ptp(found) > 0
        correlations = {name: float(measure(truth, found)[0]) if told else 0.0
                        for name, measure in (("pearson", pearsonr), ("spearman", spearmanr))}
        return {**correlations, "loss": float(answers[:, 0].mean())}

    def baseline(self, prepared: Samples) -> dict[str, float]:
        """What always answering the training mean scores."""
        misses = np.asarray(prepared.held_out.labels, np.float64) - np.mean(prepared.train.labels, dtype=np.float64)
        return {"pearson": 0.0, "spearman": 0.0, "loss": float((misses**2).mean())}


def _token_losses(logits: Any, targets: Any) -> Any:
    """float32[n, words]; logits: [n, words, vocabulary], targets: int64[n, words], 0 where IGNORED."""
    import torch.nn.functional as F

    flat = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED)
    return flat.view(targets.shape)


def _mean(losses: Any, targets: Any) -> Any:
    return losses.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)


class CausalLM(Task):
    """Each token from those before it; a sample is a block of text."""

    auto, models = "AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
    scores = ("loss", "perplexity")
    label = "nothing"

    def losses(self, forward: Forward, batch: dict[str, Any]) -> Any:
        import torch.nn.functional as F

        # The next tokens, moved under the logits: to cut the last logits off instead would copy all of them. Without
        # the mask: padding comes last, where no token that counts looks.
        targets = F.pad(batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)[:, 1:], (0, 1),
                        value=IGNORED)
        return _mean(_token_losses(forward(input_ids=batch["input_ids"]).logits, targets), targets)

    def answers(self, forward: Forward, batch: dict[str, Any]) -> np.ndarray:
        return _rows(self.losses(forward, batch))

    def metrics(self, answers: np.ndarray, prepared: Samples) -> dict[str, float]:
        loss = float(answers[:, 0].mean())
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}  # larger ones no float holds

    def baseline(self, prepared: Samples) -> dict[str, float]:
        """What drawing each token by how common it was in training scores; each has been seen once more than it was."""
        size = len(prepared.tokenizer)

        def counts(ids: np.ndarray) -> np.ndarray:
            pieces = (ids[first : first + PIECE] for first in range(0, len(ids), PIECE))
            return np.asarray(sum(np.bincount(piece, minlength=size) for piece in pieces))

        seen, asked = counts(prepared.train.ids) + 1, counts(prepared.held_out.ids)
        loss = float(-(asked * np.log(seen / seen.sum())).sum() / asked.sum())
        return {"loss": loss, "perplexity": math.exp(loss)}


class TextToText(Classification):
    """One class per sample, named in words by the decoder. The answer is the class whose name it finds most likely."""

    auto, models = "AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"

    def bind(self, tokenizer: Any, labels: list[str]) -> np.ndarray:
        words = [tuple(tokenizer(label)["input_ids"]) for label in labels]
        twins = next(((labels[words.index(found)], labels[i]) for i, found in enumerate(words) if found in words[:i]),
                     None)
        if twins:
            raise UserError(f"the model's tokenizer reads the labels {twins[0]!r} and {twins[1]!r} as the same text",
                            "give the classes names that differ in more than unknown characters or capitals")
        self.targets = np.full((len(labels), max(map(len, words))), IGNORED, np.int64)
        for row, ids in zip(self.targets, words):
            row[: len(ids)] = ids
        return self.targets

    def losses(self, forward: Forward, batch: dict[str, Any]) -> Any:
        # The model makes the decoder's inputs from the labels. The loss it makes as well is not used: it is the batch's
        # mean.
        targets = batch["labels"]
        return _mean(_token_losses(forward(**batch).logits, targets), targets)

    def answers(self, forward: Forward, batch: dict[str, Any]) -> np.ndarray:
        import torch

        made, targets = forward(**batch), batch["labels"]
        losses = _mean(_token_losses(made.logits, targets), targets)
        encoded = {**_inputs(batch, "input_ids"), "encoder_outputs": (made.encoder_last_hidden_state,)}
        unlikely = []
        for words in torch.as_tensor(self.targets, device=targets.device):
            words = words.expand(len(targets), -1).contiguous()
            unlikely.append(_token_losses(forward(**encoded, labels=words).logits, words).sum(1))
        return _rows(losses, torch.stack(unlikely, 1).argmin(1))

    def baseline(self, prepared: Samples) -> dict[str, float]:
        """As for classification, the loss shared out over the words of each name."""
        truth, words = np.asarray(prepared.held_out.labels), (self.targets != IGNORED).sum(1)
        seen = np.bincount(prepared.train.labels, minlength=len(prepared.labels)) + 1
        return {**super().baseline(prepared), "loss": float(-(np.log(seen / seen.sum()) / words)[truth].mean())}


TASKS: dict[str, type[Task]] = {"classification": Classification, "regression": Regression, "causal-lm": CausalLM,
                                "text-to-text": TextToText}


def of(job: Job) -> Task:
    """The job's task."""
    return TASKS[job.task](job.train.metric)


def problems(job: Job, file: str) -> list[Problem]:
    """What in the job does not go with its task."""
    found, task, data = [], TASKS[job.task], job.data
    if job.train.metric not in ("auto", *task.scores):
        found.append(Problem(file, "train.metric", f"task {job.task} has no {job.train.metric}",
                             f"use one of: {', '.join(task.scores)}"))
    if task is CausalLM and len(data.text) > 1:
        found.append(Problem(file, "data.text", f"task causal-lm reads one column, not {len(data.text)}",
                             f"name one, for example `text: {data.text[0]}`"))
    if data.prefix and (task is CausalLM or len(data.prefix) != len(data.text)):
        wrong = "task causal-lm puts nothing before a text" if task is CausalLM else (
            f"{len(data.prefix)} texts cannot come before {len(data.text)} columns")
        found.append(Problem(file, "data.prefix", wrong, "give as many as data.text has columns, or remove it"))
    if task is Regression and data.dataset == SECTIONS_DATASET:
        found.append(Problem(file, "task", "the labels of debian-sections are classes, not numbers",
                             "set task: classification"))
    return found + _unsuited(job, task, file)


def suits(task: type[Task], kind: str) -> bool:
    """Whether transformers has a class for the task with models of this type."""
    from transformers.models.auto import modeling_auto

    return kind in getattr(modeling_auto, task.models)


def _unsuited(job: Job, task: type[Task], file: str) -> list[Problem]:
    from transformers import CONFIG_MAPPING

    kind = None if isinstance(job.model, str) else job.model["type"]
    # a type that nobody knows is reported elsewhere
    if kind is None or kind not in CONFIG_MAPPING or suits(task, kind):
        return []
    return [Problem(file, "model.type", f"{kind} models cannot do the task {job.task}",
                    "use t5 or bart" if task is TextToText else "use gpt2" if task is CausalLM else "use bert")]
