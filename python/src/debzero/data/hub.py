"""A data set of the hub, at one commit: as data alone, and never a folder or a program that has its name here."""
from __future__ import annotations

import inspect
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Optional

from debzero.base.errors import PassingError, UserError
from debzero.base.hub import DATASET, refusals_explained
from debzero.job.local_files import hub_name

COMMIT = r"[0-9a-f]{40}"
PATIENCE = 20.0  # seconds for the hub to answer


def read(dataset: str, revision: str) -> Any:
    """Its splits, as tables that lie in the cache of `datasets`. Raises a UserError where the hub has none that can be
    used, or where it cannot be had now."""
    import datasets

    name, config = hub_name(dataset)
    _check_name(name)
    commit = _commit(name, revision)
    try:
        with _nothing_here_named(name):
            splits = datasets.load_dataset(name, config, revision=commit or revision, **no_code())
    except (ValueError, RuntimeError) as error:  # a configuration that is missing or not there; a program
        reason = " ".join(str(error).split())[:300]
        if "script" in reason or "remote_code" in reason:
            raise _program(name) from None
        raise UserError(f"the hub's data set {name} cannot be loaded: {reason}",
                        f"write its configuration behind the name, for example `data.dataset: {name}/...`") from error
    _check_origin(name, revision, commit, splits)
    return splits


def is_known(dataset: str, revision: str) -> bool:
    """Whether the hub has it, or where it cannot be asked, its caches here; False where neither can be known. Raises a
    UserError where the hub says that it has none that can be used."""
    import datasets
    from huggingface_hub import constants

    name, _ = hub_name(dataset)
    _check_name(name)
    info = _info(name, revision)
    if info is not None:
        _commit_in(info, name, revision)
        return True
    kept = (Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}",
            Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___"))
    return any(folder.is_dir() for folder in kept)


def _check_name(name: str) -> None:
    """Raises a UserError for a format of files: `datasets` would read what lies in the current folder; "pandas"
    unpickles it."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    if name in _PACKAGED_DATASETS_MODULES:
        raise UserError(f"{name!r} is a format, not a data set of the hub",
                        "name a file in data.dataset; a path begins with / or ./")


def no_code() -> dict[str, bool]:
    """For load_dataset: releases of `datasets` before 4 can run a program that came with the data."""
    import datasets

    known = inspect.signature(datasets.load_dataset).parameters
    return {"trust_remote_code": False} if "trust_remote_code" in known else {}


def commit_of(rows: Any) -> Optional[str]:
    """The commit that a table came from; None for local files."""
    found = [re.match(rf"hf://datasets/[^@]+@({COMMIT})/", file) for file in _origins(rows)]
    return next((match.group(1) for match in found if match), None)


def _program(name: str) -> UserError:
    return UserError(f"the hub's data set {name} is a program ({name.rpartition('/')[2]}.py), which debzero never runs",
                     "use a data set of parquet, csv or json files")


def _commit(name: str, revision: str) -> Optional[str]:
    """The commit that `revision` means now. None where the hub cannot be asked, or where it has a program and, of its
    branch main, an export of the rows: `datasets` finds that by the branch's name."""
    info = _info(name, revision)
    return None if info is None else _commit_in(info, name, revision)


def _commit_in(info: Any, name: str, revision: str) -> Optional[str]:
    if f"{name.rpartition('/')[2]}.py" not in [file.rfilename for file in info.siblings or []]:
        return str(info.sha)
    if revision != "main":
        raise _program(name)
    return None


def _info(name: str, revision: str) -> Any:
    """What the hub says of it; None where the hub cannot be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import OfflineModeIsEnabled

    try:
        with refusals_explained(DATASET, name, revision):
            return HfApi().dataset_info(name, revision=revision, timeout=PATIENCE)
    except (OSError, OfflineModeIsEnabled):  # of requests or httpx; what is in the cache may do
        return None


@contextmanager
def _nothing_here_named(name: str) -> Iterator[None]:
    """`datasets` prefers a folder of that name in the current folder, and a program in it, to the hub."""
    if not os.path.lexists(name.partition("/")[0]):
        yield
        return
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)
        try:
            yield
        finally:
            os.chdir(before)


def _origins(rows: Any) -> list[str]:
    return list(rows.info.download_checksums or {})


def _check_origin(name: str, revision: str, commit: Optional[str], splits: Any) -> None:
    """Where the rows came from. A data set's README may name any file of this host as its data; and where something
    fails, `datasets` takes whatever version of the data set is in its cache."""
    for rows in splits.values():
        foreign = [file for file in _origins(rows) if not file.startswith("hf://datasets/")]
        if foreign:
            raise UserError(f"the hub's data set {name} names {foreign[0]} as its data, which is not on the hub",
                            "use a data set that you trust")
        found, wanted = commit_of(rows), commit or _known_commit(name, revision)
        if found and wanted and found != wanted:
            raise PassingError(f"the hub's data set {name} came from the cache at commit {found}, not {wanted}",
                               "start again when the hub can be reached, or set data.revision to what is there")
        if not wanted and revision != "main":
            raise PassingError(f"whether the cache has the data set {name} at revision {revision} is only known online",
                               "start again when the hub can be reached, or set data.revision to a commit")


def _known_commit(name: str, revision: str) -> Optional[str]:
    """What `revision` means without asking the hub; None where nobody here knows."""
    from huggingface_hub import constants

    if re.fullmatch(COMMIT, revision):
        return revision
    refs = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}" / "refs"
    with suppress(OSError):
        return (refs / revision).read_text().strip()
    return None
