"""`debzero train` on the command line."""
from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Optional

from debzero.base.command_line import Commands, add_command, add_job, add_ranks


def add_train(commands: Commands) -> None:
    parser = add_command(
        commands, "train", run,
        "Train a job, from its data to a saved model and a report. A finished job is not trained twice; "
        "an interrupted one resumes from its newest checkpoint, and one that was only lengthened continues. The run of "
        "a job that trained something else moves to archive/. `debzero check` says beforehand which it will be.",
        ["debzero train mrpc.yml", "debzero train mrpc.yml --ranks 2", "debzero train mrpc.yml --again",
         "srun --ntasks-per-node=1 debzero train mrpc.yml"])
    add_job(parser)
    add_ranks(parser)
    parser.add_argument("--cluster", type=Path, metavar="FILE",
                        help="the hosts that train it together (default: cluster/NAME.yml beside the folder of jobs, "
                             "for a job from there)")
    parser.add_argument("--doctor", action="store_true",
                        help="examine the host first (`debzero doctor --fast`), as the unit debzero@NAME does")
    parser.add_argument("--again", action="store_true", help="train a finished job again; its results move to archive/")


def run(options: argparse.Namespace) -> int:
    from debzero.train.agreement import block_signals

    block_signals()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else, where it is ignored, nobody learns how a rank ended
    from debzero.train import schedulers

    with schedulers.launcher(options.job, options.cluster) as ranks:
        return 0 if ranks == 0 else _train(options, options.ranks or ranks)


def _train(options: argparse.Namespace, ranks: Optional[int]) -> int:
    from debzero.base import privileges
    from debzero.base.environment import NAMES
    from debzero.base.errors import InputError, Problem, as_text, passing
    from debzero.base.files import unreadable, without_dots
    from debzero.check.checks import examine
    from debzero.hosts.cluster import find_unless_wrong
    from debzero.train import standby

    privileges.tighten_umask()
    if options.cluster:
        os.environ[NAMES["cluster_file"]] = str(without_dots(options.cluster))
    job = without_dots(options.job)
    try:
        resolved, warnings, _ = examine(options.job, ranks, options.again,
                                        settled=lambda its: standby.start(its, ranks))
    except InputError as error:
        later = passing(error)
        if later is None and (among := find_unless_wrong(job)):
            from debzero.train.hosts import tell

            tell(among, error)
        raise later or error from None
    if reason := unreadable(job):  # by the owner of the output, whom root has become
        raise InputError([Problem(str(options.job), "file", f"{reason}, and the output is that user's",
                                  f"let the owner of {resolved.job.output} read the job file")])
    if warnings:
        print(as_text(warnings), file=sys.stderr, flush=True)
    from debzero.train.launch import train

    os.chdir("/")  # no library may take a file of the current folder for a module, a setting or a model
    return train(resolved, job, options.again)
