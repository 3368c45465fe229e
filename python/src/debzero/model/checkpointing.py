"""Whether a model can checkpoint its layers (`train.gradient_checkpointing`)."""
from __future__ import annotations

import re
from typing import Any

from debzero.base.errors import Problem
from debzero.job.schema import Job
from debzero.model import tasks

# Model types whose layers' outputs transformers drops where it checkpoints them, so that the layers would not learn,
# and the release from which all models checkpoint in the same way (transformers' pull request 38913).
DROPPED_BEFORE = {"umt5": (4, 54)}


def checkpointing_problems(job: Job, file: str, config: Any) -> list[Problem]:
    """Why a model of this configuration cannot train with gradient checkpointing, if the job asks for that."""
    import transformers

    if not job.train.gradient_checkpointing:
        return []
    kind, release = config.model_type, tuple(map(int, re.findall(r"\d+", transformers.__version__)[:2]))
    reason, model = "", getattr(transformers, tasks.of(job).auto)._model_mapping.get(type(config), None)
    if release < DROPPED_BEFORE.get(kind, (0,)):
        reason = (f"transformers {transformers.__version__} drops the outputs of {kind} layers when it checkpoints "
                  "them: they would not learn")
    elif model is not None and not getattr(model, "supports_gradient_checkpointing", True):
        reason = f"{kind} models cannot do it"
    return [Problem(file, "train.gradient_checkpointing", reason, "remove it; for less memory use a smaller "
                    "micro-batch, a higher zero.stage or offload")] if reason else []
