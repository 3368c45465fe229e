"""What a job reads where root works on it as root: nothing that another user may change."""
from __future__ import annotations

import os
from pathlib import Path

from debzero.base import privileges
from debzero.base.errors import InputError, Problem
from debzero.job.local_files import files_of
from debzero.job.schema import Job


def require_roots(job: Job, file: Path) -> None:
    """Raises an InputError, where this process is still root's after become_owner, with a problem for each part of the
    job that another user may change: the job file, too, for it says where root writes."""
    if os.geteuid() != 0:
        return
    named = {"file": str(file), "deepspeed": job.deepspeed, "data.dataset": job.data.dataset, "model": job.model}
    wrong = []
    for key, value in named.items():
        for path in _files(value) if isinstance(value, str) and (key == "file" or os.path.isabs(value)) else ():
            if reason := privileges.distrust(path):
                wrong.append(Problem(
                    str(file), key, f"{reason}, and root, whose the output is, reads nothing that another user may "
                    "change", f"give the output to the user who shall train, as whom root's commands then run: install "
                    f"-d -o USER {job.output}; or copy it to where only root may write (chown -R root:root)"))
                break
    if wrong:
        raise InputError(wrong)


def _files(path: str) -> list[Path]:
    """A file; or a folder and what is in it, as far as debzero and the libraries read it."""
    files = [Path(path)]
    if os.path.isdir(path) and not privileges.distrust(files[0]):
        files += files_of(path)
    return files
