"""`debzero tune` on the command line."""
from __future__ import annotations

import argparse

from debzero.base.command_line import (
    NAME_HELP,
    Commands,
    add_command,
    add_job,
    add_json,
    add_ranks,
    add_steps,
    count,
    list_of,
)
from debzero.tune.dimensions import ALL, COMBINED, DIMENSIONS, REFINED


def add_tune(commands: Commands) -> None:
    parser = add_command(
        commands, "tune", run,
        "Find the micro-batch with the highest samples/s that fits, and write it into the job file. The global batch "
        "is unchanged. The search starts from what `debzero plan` predicts and runs a few short trials, each in a "
        "process of its own. An interrupted search resumes and does not repeat finished trials.",
        ["debzero tune mrpc.yml", "debzero tune mrpc.yml --search stage,offload,checkpointing --dry-run",
         "debzero tune mrpc.yml --search all", "debzero tune mrpc.yml --json"])
    add_job(parser)
    add_ranks(parser)
    parser.add_argument("--search", type=list_of(*DIMENSIONS, ALL), default=[], metavar="LIST",
                        help=f"also search these settings: some of {','.join(COMBINED)}, in every combination, and of "
                        f"{','.join(REFINED)}, one after the other from the fastest way on; or {ALL}")
    add_steps(parser)
    parser.add_argument("--limit", type=count, default=10, metavar="MINUTES", help="time limit per trial (default: 10)")
    parser.add_argument("--exhaustive", action="store_true",
                        help="then try every other combination, too, to see how good the result is; of "
                        f"{','.join(REFINED)} no more than the search does")
    parser.add_argument("--name", metavar="HOST", help=NAME_HELP)
    parser.add_argument("--dry-run", action="store_true", help="run the trials, but write nothing into the job file")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    from debzero.tune.tuning import tune

    return tune(options)
