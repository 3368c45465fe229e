"""What a job reads, and libraries load for it, where root works on it as root: nothing that another user may change."""
from __future__ import annotations

import os
import shlex
from pathlib import Path

from debzero.base import privileges
from debzero.base.environment import NAMES
from debzero.base.errors import InputError, Problem
from debzero.job.local_files import files_of
from debzero.job.schema import Job

# Of root's home, and often links to a larger disk: what libraries load from there, compiled code among it.
CACHES = (".cache", ".cache/huggingface", ".cache/torch", ".cache/torch_extensions", ".config/matplotlib", ".nv",
          ".triton")


def require_roots(job: Job, file: Path) -> None:
    """Raises an InputError, where this process is still root's after become_owner, with a problem for each part of the
    job that another user may change: the job file, too, for it says where root writes."""
    if os.geteuid() != 0:
        return
    textfiles = NAMES["textfile_folder"]
    named = {"file": [file], "deepspeed": _paths(job.deepspeed), "data.dataset": _paths(job.data.dataset),
             "model": _paths(job.model), textfiles: _paths(os.environ.get(textfiles))[:1],
             **{f"~/{name}": [Path(os.path.expanduser(f"~/{name}"))] for name in CACHES}}
    wrong = []
    for key, paths in named.items():
        for path in paths:
            if reason := privileges.distrust(path):
                wrong.append(Problem(
                    str(file), key,
                    f"{reason}, and root, whose the output is, uses nothing that another user may change",
                    "give the output to the user who shall train, as whom root's commands then run: install -d -o USER "
                    f"{shlex.quote(job.output)}; or copy it to where only root may write (chown -R root:root)"))
                break
    if wrong:
        raise InputError(wrong)


def _paths(value: object) -> list[Path]:
    """The file that `value` names; or a folder and what is in it, as far as debzero and the libraries read it."""
    if not isinstance(value, str) or not os.path.isabs(value):
        return []  # the hub's, or no file at all
    path = Path(value)
    return [path, *(files_of(value) if os.path.isdir(value) and not privileges.distrust(path) else ())]
