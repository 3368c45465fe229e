"""Where a job's model comes from: a folder of this host, or the hub at one commit.

A hub's model is brought into the hub's cache first, without any file but JSON, tokenizers and safetensors, and is then
loaded as a local folder. So no folder that happens to have its name is taken for it, and what was checked is what is
loaded.
"""
from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Optional

from debzero.base.errors import UserError
from debzero.base.hub import MODEL, refusals_explained
from debzero.job.schema import Job
from debzero.model.folder import DANGER, flaws, other_weights, shards
from debzero.model.tokenizer import Model

PATIENCE = 20.0  # seconds for the hub to answer whether it has a model
# Of a repository's first level. The weights follow when these have been looked at.
FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.spm", "*.codes", "*.tokenizer"]


def local(job: Job, commit: Optional[str] = None) -> Model:
    """The model for from_pretrained(): the absolute path of its folder, or the settings of one from scratch. `commit`:
    of a hub's model, if it is not to be asked what `revision:` means now. Raises a UserError where the hub has none
    that can be used, or where it cannot be had now."""
    if isinstance(job.model, dict) or Path(job.model).is_absolute():
        return job.model
    name, revision = job.model, commit or job.revision
    folder = _download(name, revision, FILES)
    found = flaws(folder, weights=False)
    if not (folder / "config.json").is_file():
        raise _without_config(name)
    if not found:
        commit = folder.name  # so that all files are of the same one
        folder = _download(name, commit, shards(folder))
        found = flaws(folder)
        if others := found and _others(name, commit):
            raise UserError(
                f"the hub's model {name} has its weights as {', '.join(others[:3])} alone: {DANGER}",
                f"look for a revision with safetensors (https://huggingface.co/{name}/discussions), or fetch it with "
                f"`huggingface-cli download {shlex.quote(name)} --revision {commit} --local-dir FOLDER` and set "
                "`model: FOLDER`; `debzero check` then shows how to convert it")
    if found:
        raise UserError(f"the hub's model {name} cannot be used: {found[0].reason}", found[0].fix)
    return str(folder)


def is_known(name: str, revision: str) -> bool:
    """Whether the hub has this model, or where it cannot be asked, its cache here; False where neither can be known.
    Raises a UserError where the hub says that it has none that can be used."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        with refusals_explained(MODEL, name, revision):
            info = HfApi().model_info(name, revision=revision, timeout=PATIENCE)
    except OSError:  # of requests or httpx, or because HF_HUB_OFFLINE is set
        return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    if "config.json" not in [file.rfilename for file in info.siblings or []]:
        raise _without_config(name)
    return True


def _without_config(name: str) -> UserError:
    return UserError(f"the hub's model {name} has no config.json", "use a model that transformers can load")


def folder_here(job: Job) -> Optional[Path]:
    """The folder of a job's model, as far as this host has it: a local one, or the hub's in its cache. The hub is not
    asked."""
    from huggingface_hub import try_to_load_from_cache

    if isinstance(job.model, dict):
        return None
    if Path(job.model).is_absolute():
        return Path(job.model)
    found = try_to_load_from_cache(job.model, "config.json", revision=job.revision)
    return Path(found).parent if isinstance(found, str) else None


def revisions(where: Model) -> dict[str, str]:
    """The commit of a model that local() found in the hub's cache, under "model"; empty for any other."""
    found = re.search(r"/models--[^/]+/snapshots/([0-9a-f]{40})$", str(where))
    return {"model": found.group(1)} if found else {}


def _others(name: str, commit: str) -> list[str]:
    """The files of a hub's model with weights in other formats; none where there are safetensors, or it is offline."""
    from huggingface_hub import list_repo_files

    try:
        names = list_repo_files(name, revision=commit)
    except Exception:  # of the network or the hub; it is about a better message only
        return []
    return [] if any(each.endswith(".safetensors") for each in names) else other_weights(names)


def _download(name: str, revision: str, patterns: list[str]) -> Path:
    """The folder in the hub's cache with those files of the repository's first level."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import LocalEntryNotFoundError

    try:
        with refusals_explained(MODEL, name, revision):
            return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except LocalEntryNotFoundError:
        if not constants.HF_HUB_OFFLINE:
            raise  # the hub cannot be reached: that may pass
        raise UserError(f"the hub's cache has no model {name} at revision {revision!r}, and HF_HUB_OFFLINE is set",
                        "fetch it where the hub can be reached, or correct `model:` or `revision:`") from None
