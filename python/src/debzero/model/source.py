"""Where a job's model comes from: a folder of this host, or the hub at one commit.

A hub's model is brought into the hub's cache first, without any file but JSON, tokenizers and safetensors, and is then
loaded as a local folder. So no folder that happens to have its name is taken for it, and what was checked is what is
loaded.
"""
from __future__ import annotations

import re
from pathlib import Path

from debzero.base.errors import UserError
from debzero.job.schema import Job
from debzero.model.folder import flaws
from debzero.model.tokenizer import Model

FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]  # of the repository's first level


def local(job: Job) -> Model:
    """The model for from_pretrained(): the absolute path of its folder, or the settings of one from scratch. Raises a
    UserError where the hub has none that can be used, or it cannot be had now."""
    if isinstance(job.model, dict) or Path(job.model).is_absolute():
        return job.model
    folder = _download(job.model, job.revision)
    found = flaws(folder) if (folder / "config.json").is_file() else []
    if found:
        raise UserError(f"the hub's model {job.model} cannot be used: {found[0].reason}", found[0].fix)
    return str(folder)


def revisions(where: Model) -> dict[str, str]:
    """The commit of a model that local() found in the hub's cache, under "model"; empty for any other."""
    found = re.search(r"/models--[^/]+/snapshots/([0-9a-f]{40})$", str(where))
    return {"model": found.group(1)} if found else {}


def _download(name: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=FILES, ignore_patterns=["*/*"]))
    except HFValidationError:
        raise UserError(f"{name!r} is neither a folder nor a name that the hub can have",
                        "correct `model:`; a folder begins with / or ./") from None
    except RevisionNotFoundError:
        raise UserError(f"the hub's model {name} has no revision {revision!r}",
                        "set `revision:` to one of its branches, tags or commits") from None
    except RepositoryNotFoundError:
        raise UserError(f"the model {name!r} was not found on the hub",
                        "correct `model:`, or set HF_TOKEN if it is private") from None
