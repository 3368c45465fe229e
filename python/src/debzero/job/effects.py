"""What a change of each key of a job does to a run that has begun. The table of DeepSpeed's keys is in
deepspeed_json/keys.yml (`effect`)."""
from __future__ import annotations

from enum import Enum


class Effect(Enum):
    """The value says it in docs/reference/job.md."""

    WEIGHTS = "what is computed"
    LAYOUT = "speed and memory, and the form of the checkpoints"
    LENGTH = "when the training ends"
    RESULT = "which weights and which score are the result"
    WATCH = "what is measured and kept"
    SPEED = "speed and memory alone"
    PLACE = "where the runs lie"

    @property
    def starts_anew(self) -> bool:
        return self in (Effect.WEIGHTS, Effect.LAYOUT)

    @property
    def counts_when_finished(self) -> bool:
        """Whether a finished run has something left to do with another value."""
        return self in (Effect.LENGTH, Effect.RESULT)


_KEYS = {
    Effect.WEIGHTS: (
        "model", "revision", "task", "data.dataset", "data.revision", "data.text", "data.label", "data.answers",
        "data.max_answer_length", "data.max_length", "data.held_out", "data.prefix", "data.batching",
        "train.global_batch", "train.learning_rate", "train.precision", "train.seed", "train.warmup",
        "train.weight_decay", "train.gradient_clipping"),
    # A stage's checkpoints hold what each rank had of the states, and a CPU's Adam has another state than a GPU's.
    Effect.LAYOUT: ("zero.stage", "zero.offload_optimizer", "zero.offload_param"),
    Effect.LENGTH: ("train.epochs", "train.max_steps", "train.patience"),
    Effect.RESULT: ("train.metric", "train.select"),
    Effect.WATCH: ("train.evaluate_every", "train.log_every", "checkpoint.minutes", "checkpoint.steps",
                   "checkpoint.keep"),
    # Micro-batch, padding and ranks change the numbers that dropout draws, not what is trained; both engines read each
    # other's checkpoints; and those of a divided model hold whole tensors.
    Effect.SPEED: ("train.micro_batch", "train.gradient_checkpointing", "train.compile", "data.padding",
                   "zero.nvme_path", "zero.engine", "zero.favour", "zero.bucket", "zero.overlap", "zero.live",
                   "zero.prefetch", "ranks", "parallel.tensor", "parallel.pipeline"),
    Effect.PLACE: ("output",),
}
OF_THE_JSON = "deepspeed"  # has the effect of its own keys
EFFECTS: dict[str, Effect] = {key: effect for effect, keys in _KEYS.items() for key in keys}


def effect_of(key: str) -> Effect:
    """The effect of a job's key, by its dotted path, or of a setting of a new model below `model`."""
    return EFFECTS["model" if key.startswith("model.") else key]
