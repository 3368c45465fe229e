"""Whether the hub has the data set and the model that a job names, or the user meant files of this host."""
from __future__ import annotations

from pathlib import Path
from typing import Callable

from debzero.base.errors import HiddenError, Problem, UserError
from debzero.data import hub
from debzero.job.local_files import near_names
from debzero.job.schema import SECTIONS_DATASET, Job
from debzero.model import source


class Unverified(Problem):
    """A name of which nobody here can say whether it is right: no mistake, but no OK either."""


def hub_problems(job: Job, file: str) -> list[Problem]:
    """Of the job in `file`: errors for names that the hub does not have, warnings (Unverified) where it cannot be
    asked and its caches here have none of that name."""
    found: list[Problem] = []
    data = job.data
    if data.dataset != SECTIONS_DATASET and not Path(data.dataset).is_absolute():
        found += _asked(file, "data.dataset", data.dataset, lambda: hub.is_known(data.dataset, data.revision))
    model = job.model
    if isinstance(model, str) and not Path(model).is_absolute():
        found += _asked(file, "model", model, lambda: source.is_known(model, job.revision))
    return found


def _asked(file: str, key: str, name: str, is_known: Callable[[], bool]) -> list[Problem]:
    kind = "model" if key == "model" else "data set"
    refused = None
    try:
        if is_known():
            return []
    except UserError as error:
        refused = error
    # They are words of the fix alone: whoever may write beside the job has no say in the verdict.
    near = near_names(name, Path(file).absolute().parent, model=key == "model")
    meant = f"did you mean {' or '.join(near)}, beside the job file? If not, " if near else ""
    if isinstance(refused, HiddenError) and "/" in name and not _has_token():
        return [Unverified(file, key, f"{refused.reason}, which shows private ones only to their owners",
                           meant + refused.fix, severity="warning")]
    if refused:
        return [Problem(file, key, refused.reason, meant + refused.fix)]
    return [Unverified(file, key, f"whether there is a {kind} {name!r} could not be verified: neither the job's folder "
                       "nor the hub's cache here has one of that name, and the hub cannot be asked",
                       f"{meant}check again where the hub can be reached (HF_HUB_OFFLINE must not be set)",
                       severity="warning")]


def _has_token() -> bool:
    """Whether the hub is asked as somebody."""
    from huggingface_hub import get_token

    return bool(get_token())
