"""The job file: what it may hold, read and checked with all problems at once.

Only the shape is judged here; whether the files, the disk and the GPUs are there is for debzero.check.
"""
from __future__ import annotations

from typing import Annotated, Any, Dict, List, Literal, Optional, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

SECTIONS_DATASET = "debian-sections"
MOST = 2**40  # of anything that is counted: more is a slip, and its divisors would take minutes to find


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # Python counts True as 1
        raise ValueError(f"must be a number, not {str(value).lower()}")
    return value


def _auto_or_count(value: Any) -> Union[int, str]:
    if value == "auto":
        return "auto"
    if isinstance(value, str) and value.isdigit() or isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"must be auto or a whole number of at least 1, not {value!r}")
    return value


def _columns(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _stage(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _model(value: Any) -> Any:
    if isinstance(value, dict):
        if not isinstance(value.get("type"), str):
            raise ValueError("a model trained from scratch needs its type")
        if _auto_or_count(value.get("vocab_size", 0) or None) == "auto":
            raise ValueError("a model trained from scratch needs vocab_size, the number of word pieces to learn")
    elif not isinstance(value, str) or not value:
        raise ValueError(f"must be a hub id, a folder or a mapping, not {value!r}")
    return value


Count = Annotated[int, BeforeValidator(_number), Field(ge=1, lt=MOST)]
AutoCount = Annotated[Union[int, str], BeforeValidator(_auto_or_count)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0)]
AtLeastZero = Annotated[float, BeforeValidator(_number), Field(ge=0)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Data(Section):
    dataset: str = Field(min_length=1, examples=["glue/mrpc"])
    text: Annotated[List[str], BeforeValidator(_columns), Field(min_length=1, max_length=2)] = Field(
        ["text"], examples=["[sentence1, sentence2]"])
    label: str = Field("label", examples=["label"])
    max_length: Annotated[int, BeforeValidator(_number), Field(ge=8)] = Field(128, examples=["128"])
    held_out: Optional[Annotated[float, BeforeValidator(_number), Field(gt=0, lt=1)]] = Field(None, examples=["0.1"])
    prefix: Annotated[List[str],
                      BeforeValidator(_columns)] = Field([], examples=["['mrpc sentence1: ', ' sentence2: ']"])
    batching: Literal["bucketed", "shuffled"] = Field("bucketed", examples=["bucketed"])
    padding: Literal["longest", "max_length"] = Field("longest", examples=["longest"])


class Train(Section):
    epochs: Count = Field(3, examples=["3"])
    global_batch: Count = Field(64, examples=["64"])
    micro_batch: AutoCount = Field("auto", examples=["auto"])
    learning_rate: Positive = Field(3e-5, examples=["3e-5"])
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field("auto", examples=["auto"])
    seed: Annotated[int, BeforeValidator(_number), Field(ge=0, lt=2**31)] = Field(42, examples=["42"])
    warmup: Share = Field(0.1, examples=["0.1 (a share of the steps)"])
    weight_decay: AtLeastZero = Field(0.01, examples=["0.01"])
    gradient_clipping: AtLeastZero = Field(1.0, examples=["1.0"])
    log_every: Count = Field(10, examples=["10"])
    max_steps: Optional[Count] = Field(None, examples=["100"])
    gradient_checkpointing: bool = Field(False, examples=["true"])
    compile: Literal["auto", "never"] = Field("auto", examples=["never"])
    evaluate_every: Optional[Count] = Field(None, examples=["50 (steps; without it, at each epoch's end)"])
    metric: Literal["auto", "accuracy", "f1", "matthews", "pearson", "spearman",
                    "loss"] = Field("auto", examples=["f1"])
    select: Literal["last", "best"] = Field("last", examples=["best"])
    patience: Optional[Count] = Field(None, examples=["3 (evaluations without a better metric)"])


class Zero(Section):
    stage: Annotated[Literal["none", 1, 2, 3], BeforeValidator(_stage)] = Field("none", examples=["2"])
    offload_optimizer: Literal["none", "cpu", "nvme"] = Field("none", examples=["cpu"])
    offload_param: Literal["none", "cpu", "nvme"] = Field("none", examples=["cpu"])
    nvme_path: Optional[str] = Field(None, examples=["/nvme/swap"])


class Checkpoint(Section):
    minutes: Positive = Field(10, examples=["10"])
    steps: Optional[Count] = Field(None, examples=["500"])
    keep: Count = Field(2, examples=["2"])


class Job(Section):
    """One job file. Paths in it are relative to the file's own folder."""

    model: Annotated[Union[str, Dict[str, Any]], BeforeValidator(_model)] = Field(
        examples=["bert-large-uncased` or `model: {type: bert, vocab_size: 8000}"])
    task: Literal["classification", "regression", "causal-lm", "text-to-text"] = Field("classification",
                                                                                       examples=["causal-lm"])
    data: Data = Field(examples=["{dataset: glue/mrpc, text: [sentence1, sentence2], label: label}"])
    train: Train = Field(default_factory=Train, examples=["{epochs: 3}"])
    zero: Zero = Field(default_factory=Zero, examples=["{stage: 2}"])
    checkpoint: Checkpoint = Field(default_factory=Checkpoint, examples=["{minutes: 10}"])
    ranks: AutoCount = Field("auto", examples=["auto"])
    deepspeed: Optional[Union[str, Dict[str, Any]]] = Field(None, examples=["deepspeed_config.json"])
    output: str = Field(min_length=1, examples=["/var/lib/debzero/mrpc"])
