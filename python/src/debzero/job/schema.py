"""The job file: its keys, what they mean and what they may be. This is the one place where a key is explained.

From the descriptions, defaults and examples come the man page, docs/reference/job.md, `debzero check --schema` and the
examples in error messages. `make docs` writes the tracked ones. Examples are YAML, as a user would write them.

Only the shape is checked here; whether the files, the disk and the GPUs are there is for debzero.check. Within
Annotated, limits come before the validator: pydantic then knows them for the JSON Schema, too.
"""
from __future__ import annotations

from typing import Annotated, Any, Dict, List, Literal, Optional, Union

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from debzero.base.reading import DIGITS
from debzero.base.text import short

SECTIONS_DATASET = "debian-sections"
ALSO = "accepted as well"  # of a part of the schema: not shown to people
MOST = 2**40  # of anything that is counted: more is a slip, and its divisors would take minutes to find


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # Python counts True as 1
        raise ValueError(f"must be a number, not {str(value).lower()}")
    return value


def _whole(value: Any) -> Any:
    """A whole number that is written as a text, or with a point, as what it is."""
    is_text = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < DIGITS
    return int(value) if is_text or isinstance(value, float) and value.is_integer() else value


def _auto_or_count(value: Any) -> Union[int, str]:
    if value == "auto":
        return "auto"
    value = _whole(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"must be auto or a whole number of at least 1, not {short(value)}")
    if value >= MOST:
        raise ValueError(f"must be less than {MOST}, not {short(value)}")
    return value


def _columns(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _stage(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be none, 1, 2 or 3, not {str(value).lower()}")
    return _whole(value)


def _not_empty(value: Any) -> Any:
    if value == "":
        raise ValueError("must not be empty")
    return value


def _model(value: Any) -> Any:
    if isinstance(value, dict):
        if not isinstance(value.get("type"), str) or not value["type"]:
            raise ValueError("a model trained from scratch needs a type that transformers knows, for example bert")
        size = _whole(value.get("vocab_size"))
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size < MOST:
            given = "which is missing" if size is None else f"a whole number, not {short(size)}"
            raise ValueError("a model trained from scratch needs vocab_size, the number of word pieces to learn, "
                             + given)
        return {**value, "vocab_size": size}
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be a hub id, a folder or a mapping, not {short(value)}")
    return value


# What a validator accepts beyond its type is unknown to pydantic's JSON Schema: these say it.
AUTO_COUNT_SCHEMA = {"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "exclusiveMaximum": MOST}]}
STAGE_SCHEMA = {"anyOf": [{"enum": ["none", 1, 2, 3]}, {"enum": ["1", "2", "3"], "$comment": ALSO}]}
MODEL_SCHEMA = {"anyOf": [
    {"type": "string", "minLength": 1},
    {"type": "object", "required": ["type", "vocab_size"], "additionalProperties": True, "properties": {
        "type": {"type": "string", "minLength": 1,
                 "description": "The architecture, as transformers names it, for example bert."},
        "vocab_size": {"type": "integer", "minimum": 1, "exclusiveMaximum": MOST,
                       "description": "Word pieces that the tokenizer learns from the training texts."}}}]}

Count = Annotated[int, Field(ge=1, lt=MOST), BeforeValidator(_number)]
AutoCount = Annotated[Union[int, str], BeforeValidator(_auto_or_count), WithJsonSchema(AUTO_COUNT_SCHEMA)]
Positive = Annotated[float, Field(gt=0), BeforeValidator(_number)]
AtLeastZero = Annotated[float, Field(ge=0), BeforeValidator(_number)]
Share = Annotated[float, Field(ge=0, lt=1), BeforeValidator(_number)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


Revision = Annotated[str, Field(pattern=r"^[A-Za-z0-9_+-]+([./][A-Za-z0-9_+-]+)*$", max_length=200)]


class Data(Section):
    dataset: str = Field(
        min_length=1, examples=["glue/mrpc", "reviews.csv", "/srv/reviews", SECTIONS_DATASET], description=(
            "The data set. On the Hugging Face hub: `owner/name`, `owner/name/configuration`, or a configuration of "
            "`glue`, `super_glue` or `wikitext`, such as `glue/mrpc`. On this host: a `.csv`, `.json`, `.jsonl` or "
            "`.parquet` file, all of whose rows are used for training (see `held_out`); or a folder with `train.*` and "
            "`validation.*` or `test.*` files, all in one of these formats. CSV files name their columns in the first "
            "line; commas, semicolons, tabs and `|` are recognised as separators, and only an empty field is missing: "
            "NA, None and null are words. JSON is a list of objects, or one object per line. `debzero check` reads "
            "every row of a local set (of each file the first 5,000,000; with `--fast` only the columns) and prints "
            "the rows on each side, the classes with their counts and the lengths in tokens, as the training does. "
            "A name that starts with `/`, `./`, `../` or `~`, ends in a data suffix, or exists beside the job file "
            "(unless that is the folder of a run) is local; any other is the hub's, whatever the current folder holds. "
            "`debian-sections` are package descriptions and their archive sections, from this host's own apt lists."))
    revision: Revision = Field("main", examples=["v1.0"], description=(
        "Which version of a hub's data set to take: a branch, a tag or a commit. The report says which commit it "
        "was."))
    text: Annotated[List[str], Field(min_length=1, max_length=2), BeforeValidator(_columns)] = Field(
        ["text"], examples=["sentence", "[sentence1, sentence2]"], description=(
            "The column with the text, or two columns for a pair of texts. causal-lm reads one."))
    label: str = Field("label", examples=["label"], description=(
        "The column with the answer: a class for classification, a number for regression, a class or a text for "
        "text-to-text (see `answers`). causal-lm has none."))
    answers: Literal["classes", "text"] = Field("classes", examples=["text"], description=(
        "What text-to-text learns to write. `classes`: one of the labels of the training rows, a closed set; the "
        "model's answer is the likeliest of them. `text`: a text of its own for each sample, such as a summary or a "
        "translation. Other tasks have `classes`."))
    max_answer_length: Annotated[int, Field(ge=2, lt=MOST), BeforeValidator(_number)] = Field(
        128, examples=["128"], description=(
            "Tokens of an answer at most where `answers` is `text`: longer targets are cut off, and the model writes "
            "no more at an evaluation. Otherwise unused."))
    max_length: Annotated[int, Field(ge=8, lt=MOST), BeforeValidator(_number)] = Field(
        128, examples=["128"], description=(
            "Tokens per sample at most; longer ones are cut off. For causal-lm, the tokens of each block that the "
            "texts are cut into. Memory grows with it."))
    held_out: Optional[Annotated[float, Field(gt=0, lt=1), BeforeValidator(_number)]] = Field(
        None, examples=["0.1"], description=(
            "The share of the training rows that is kept for evaluation, if the data set has no validation split. "
            "Without it the data needs a validation or test split; debian-sections keeps a tenth."))
    prefix: Annotated[List[str], BeforeValidator(_columns)] = Field(
        [], examples=["['mrpc sentence1: ', ' sentence2: ']"], description=(
            "A text to put before each column of `text`; the columns then become one text. For models such as T5, "
            "whose training named the task in the text. By default nothing is added."))
    batching: Literal["bucketed", "shuffled"] = Field("bucketed", examples=["bucketed"], description=(
        "`bucketed` puts samples of similar length into one batch, which wastes little on padding. `shuffled` draws "
        "every batch at random. Either way each sample is seen once per epoch."))
    padding: Literal["longest", "max_length"] = Field("longest", examples=["longest"], description=(
        "`longest` pads a batch to its longest sample; `max_length` pads every batch to `max_length` tokens, which "
        "is slower but always takes the same memory."))


    @property
    def unused(self) -> set[str]:
        """The keys that mean nothing with the others: runs and samples do not depend on them."""
        return {"answers", "max_answer_length"} if self.answers == "classes" else set()


class Train(Section):
    epochs: Count = Field(3, examples=["3"], description=(
        "Passes through the training data. With more of them a run continues, also a finished one, and its learning "
        "rate follows the new length."))
    global_batch: Count = Field(64, examples=["64"], description=(
        "Samples per optimizer step, on all ranks together: micro-batch x gradient accumulation steps x ranks, "
        "exactly. The result does not depend on how it is divided."))
    micro_batch: AutoCount = Field("auto", examples=["auto", "16"], description=(
        "Samples per forward pass on each rank. `auto` takes the largest that `debzero plan` expects to fit the "
        "GPU's memory, on a CPU at most 32. After running out of memory the run continues with half of it; the "
        "global batch stays."))
    learning_rate: Positive = Field(3e-5, examples=["3e-5"], description=(
        "The peak learning rate of AdamW. It rises linearly over `warmup` and then falls linearly to 0 at the last "
        "step."))
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field("auto", examples=["auto"], description=(
        "The floating-point type of the computation. `auto` takes bf16 on GPUs that have it (Ampere and later), "
        "on older GPUs fp16, but fp32 for T5 models; on a CPU fp32."))
    seed: Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_number)] = Field(42, examples=["42"], description=(
        "The seed for all random numbers: new weights, the order of samples, dropout, the split by `held_out`."))
    warmup: Share = Field(0.1, examples=["0.1"], description=(
        "The share of all optimizer steps in which the learning rate rises."))
    weight_decay: AtLeastZero = Field(0.01, examples=["0.01"], description="AdamW's weight decay; 0 for none.")
    gradient_clipping: AtLeastZero = Field(1.0, examples=["1.0"], description=(
        "The largest norm of the gradients; larger ones are scaled down to it. 0 for no clipping."))
    log_every: Count = Field(10, examples=["10"], description="Optimizer steps between two lines of progress.")
    max_steps: Optional[Count] = Field(None, examples=["100"], description=(
        "Optimizer steps in total, where `epochs` would take more. By default `epochs` decides. A run continues with "
        "more of them, as with more `epochs`."))
    gradient_checkpointing: bool = Field(False, examples=["true"], description=(
        "Compute the activations again in the backward pass instead of keeping them: much less memory, about a "
        "third more computing."))
    compile: Literal["auto", "never"] = Field("auto", examples=["never"], description=(
        "`auto` compiles the model's layers with torch.compile on GPUs where the installed torch can do it (2.4 and "
        "later), except in DeepSpeed's ZeRO stage 3 and in divided models; `never` does not."))
    evaluate_every: Optional[Count] = Field(None, examples=["50"], description=(
        "Optimizer steps between two evaluations on the held-out samples. By default they follow each epoch."))
    metric: Literal["auto", "accuracy", "f1", "matthews", "pearson", "spearman", "rouge_l", "exact_match",
                    "loss"] = Field(
        "auto", examples=["f1"], description=(
            "The score that `select` and `patience` go by. `auto`: accuracy for classification and text-to-text, "
            "rouge_l for text-to-text with `answers: text`, pearson for regression, loss for causal-lm."))
    select: Literal["last", "best"] = Field("last", examples=["best"], description=(
        "Which weights become the result: those of the last step, or of the evaluation with the best `metric`."))
    patience: Optional[Count] = Field(None, examples=["3"], description=(
        "Evaluations without a better `metric` after which the training stops early. By default it never does. A run "
        "that has stopped continues with a larger number."))


Favour = Literal["memory", "speed"]


class Zero(Section):
    stage: Annotated[Literal["none", 1, 2, 3], BeforeValidator(_stage), WithJsonSchema(STAGE_SCHEMA)] = Field(
        "none", examples=["2"], description=(
            "What is sharded over the ranks instead of copied to each: 1 the optimizer states, 2 also the gradients, 3 "
            "also the parameters. `none` is plain data parallelism (DDP), in which every rank holds everything."))
    offload_optimizer: Literal["none", "cpu", "nvme"] = Field("none", examples=["cpu"], description=(
        "Where the optimizer states are kept and updated: on the GPU, in the host's memory (stages 1 to 3), or on "
        "an NVMe disk (stage 3 only)."))
    offload_param: Literal["none", "cpu", "nvme"] = Field("none", examples=["cpu"], description=(
        "Where the parameters are kept between their uses: on the GPU, in the host's memory, or on an NVMe disk. "
        "Stage 3 only."))
    nvme_path: Optional[Annotated[str, Field(min_length=1)]] = Field(None, examples=["/nvme/swap"], description=(
        "A folder on a local NVMe disk with ext4 or xfs. Required if a part is offloaded to nvme; otherwise unused."))
    engine: Literal["auto", "deepspeed", "native"] = Field("auto", examples=["native"], description=(
        "What carries out the stages: DeepSpeed, or debzero's own engine, which has no offload and takes no DeepSpeed "
        "JSON. `auto` is DeepSpeed, except for divided models, and on GPUs (one for each rank) with torch 2.4 or "
        "later: there the native engine can record whole steps as CUDA graphs. GPT-2 Medium on two H200s with torch "
        "2.11 trained more than twice as fast with it at stage 2, and nearly four times at stage 3, as with DeepSpeed "
        "and `favour: speed`. `debzero check` says which engine trains. Either resumes from the other's checkpoints."))
    favour: Favour = Field("speed", examples=["memory"], description=(
        "What DeepSpeed's buffers are chosen for; plain DDP and the native engine have none. `memory`: small ones. "
        "`speed`: buckets of 1e8 elements, overlapped communication where the installed release does it right, and in "
        "stage 3 whole layers gathered ahead and kept for the backward pass, which takes gigabytes more of the GPU. "
        "They are used where `debzero plan` predicts that a tenth of each GPU's memory stays free beside them and the "
        "micro-batch, else the small ones are, as they are on a CPU, under another launcher than `debzero train`, and "
        "after memory ran out; `debzero check` says which. How much faster `speed` is than `memory` is not measured "
        "yet."))
    bucket: Optional[Count] = Field(None, examples=["50000000"], description=(
        "Elements that DeepSpeed reduces, and at stages 1 and 2 gathers, at once. By default `favour` decides, as it "
        "does for `overlap`, `live` and `prefetch`; with any of these four, DeepSpeed trains where `engine` is `auto`. "
        "`debzero tune --search buckets,overlap,live,prefetch` finds values for them."))
    overlap: Optional[bool] = Field(None, examples=["false"], description=(
        "Whether DeepSpeed communicates while the backward pass computes. `true` is refused where the installed "
        "release does it wrong, and means nothing on a CPU and where ranks share a GPU. By default `favour` decides."))
    live: Optional[Count] = Field(None, examples=["1000000000"], description=(
        "Parameters that stage 3 holds gathered at most, and for whose next use it keeps them if that is no further "
        "away. By default `favour` decides."))
    prefetch: Optional[Annotated[int, Field(ge=0, lt=MOST), BeforeValidator(_number)]] = Field(
        None, examples=["50000000"], description=(
            "Parameters that stage 3 gathers ahead of their use at once; 0 for none. By default `favour` decides."))


class Parallel(Section):
    tensor: Count = Field(1, examples=["2"], description=(
        "Ranks that compute each layer together: every one has a part of the attention heads, of the feed-forward "
        "layers and of the vocabulary, and of the gradients and optimizer states that belong to them (tensor "
        "parallelism). For models that are too large for one GPU, on GPUs of one host with NVLink: the ranks exchange "
        "activations four times a layer. The number must divide `ranks` and the model's attention heads. For BERT, "
        "RoBERTa, GPT-2 and T5 models; with `zero.stage` none, or 1 with the native engine."))

    pipeline: Count = Field(1, examples=["2"], description=(
        "Stages that the model's layers are divided into, one after the other: each rank has the layers of one, with "
        "their gradients and optimizer states, and passes its results on (pipeline parallelism). It moves far less "
        "data than `tensor`, but stages wait for each other at the beginning and the end of each step, a share "
        "(stages - 1) / (accumulation steps + stages - 1) of the time: choose a small `train.micro_batch`. Not with "
        "`data.answers: text`. For the same models as `tensor`, also together with it."))

    @property
    def each(self) -> int:
        """Ranks of one copy of the model."""
        return self.pipeline * self.tensor


class Checkpoint(Section):
    minutes: Positive = Field(10, examples=["10"], description=(
        "Minutes between two checkpoints: about as much work as a crash can lose."))
    steps: Optional[Count] = Field(None, examples=["500"], description=(
        "Also save after every so many optimizer steps. By default only time and evaluations count."))
    keep: Count = Field(2, examples=["2"], description=(
        "How many checkpoints stay on the disk, the newest ones. While the next one is written, there must be room for "
        "one more."))


class Job(Section):
    """One job file. Paths in it are relative to the file's own folder."""

    model: Annotated[Union[str, Dict[str, Any]], BeforeValidator(_model), WithJsonSchema(MODEL_SCHEMA)] = Field(
        examples=["bert-large-uncased", "/srv/models/bert", "{type: bert, vocab_size: 8000}"], description=(
            "The model: a Hugging Face hub id; a folder that save_pretrained wrote; or, to train from scratch, a "
            "mapping with the architecture (`type`), the size of the vocabulary to learn (`vocab_size`) and any "
            "other settings of that architecture in transformers. A name that starts with `/`, `./`, `../` or `~`, or "
            "exists beside the job file (unless that is the folder of a run) is a folder; any other is the hub's, "
            "whatever the current folder holds. Weights must be safetensors, and code that comes with a model is never "
            "run."))
    revision: Revision = Field("main", examples=["v1.0"], description=(
        "Which version of a hub's model to take: a branch, a tag or a commit. The report says which commit it was."))
    task: Literal["classification", "regression", "causal-lm", "text-to-text"] = Field(
        "classification", examples=["causal-lm"], description=(
            "What is learned: `classification` a class per sample, `regression` a number, `causal-lm` the next "
            "token (GPT-2 and the like), `text-to-text` a class or a text that is written by the decoder (T5 "
            "and the like; see `data.answers`)."))
    data: Data = Field(examples=["{dataset: glue/mrpc, text: [sentence1, sentence2], label: label}"],
                       description="The data set, its columns, and how samples become batches.")
    train: Train = Field(default_factory=Train, examples=["{epochs: 3}"],
                         description="The training itself: batch, learning rate, precision, evaluation.")
    zero: Zero = Field(default_factory=Zero, examples=["{stage: 2}"],
                       description="What DeepSpeed ZeRO shards over the ranks and offloads from the GPU.")
    parallel: Parallel = Field(default_factory=Parallel, examples=["{tensor: 2}"], description=(
        "How the ranks divide the model itself. The rest of the ranks are copies that divide the batch. A run "
        "continues also with another division: its checkpoints hold whole tensors."))
    checkpoint: Checkpoint = Field(default_factory=Checkpoint, examples=["{minutes: 10}"], description=(
        "When the run saves what it needs to resume. It also saves at each evaluation and when it is stopped."))
    ranks: AutoCount = Field("auto", examples=["auto", "2"], description=(
        "Processes to train with. `auto`: one per GPU, or one on a host without GPUs."))
    deepspeed: Annotated[Optional[Union[Annotated[str, Field(min_length=1)], Dict[str, Any]]],
                         BeforeValidator(_not_empty)] = Field(
        None, examples=["deepspeed_config.json", "{gradient_clipping: 0.5}"], description=(
            "DeepSpeed's own configuration: a JSON file, or its keys inline. What it sets overrules this job; "
            "\"auto\" in it stands for the job's value. By default debzero writes the whole configuration."))
    output: str = Field(min_length=1, examples=["/var/lib/debzero/mrpc"], description=(
        "The run's folder, for this job alone: checkpoints, the model, the report, the metrics. A job that trains "
        "something else there moves the earlier run to archive/, from where it is taken back when the job fits it "
        "again."))

    def as_yaml(self) -> str:
        """This job as a job file, with each key that has a value."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)
