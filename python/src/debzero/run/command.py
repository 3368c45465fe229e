"""`debzero status` and `debzero stop` on the command line."""
from __future__ import annotations

import argparse

from debzero.base.command_line import Commands, add_command, add_json, add_run_name


def add_status(commands: Commands) -> None:
    parser = add_command(
        commands, "status", show_status, "Show a run's progress, or its report. Without a name: all jobs of this host.",
        ["debzero status", "debzero status demo", "debzero status demo --watch",
         "debzero status /var/lib/debzero/demo --json"])
    add_run_name(parser, nargs="?")
    add_json(parser)
    parser.add_argument("--watch", action="store_true", help="follow the run until it ends")


def show_status(options: argparse.Namespace) -> int:
    from debzero.run.status import status

    return status(options.name, options.json, options.watch)


def add_stop(commands: Commands) -> None:
    parser = add_command(
        commands, "stop", stop_run,
        "Stop a run after its current step. It writes a checkpoint, from which the next start resumes; then this "
        "returns.",
        ["debzero stop demo", "debzero stop /var/lib/debzero/demo"])
    add_run_name(parser)


def stop_run(options: argparse.Namespace) -> int:
    from debzero.run.stop import stop

    return stop(options.name)
