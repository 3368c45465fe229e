"""`debzero check` on the command line."""
from __future__ import annotations

import argparse
from pathlib import Path

from debzero.base.command_line import Commands, add_command, add_json, add_ranks


def add_check(commands: Commands) -> None:
    parser = add_command(
        commands, "check", run,
        "Check a job, or DeepSpeed's own JSON, without starting it. All problems are shown at once, each with its "
        "reason and its fix. Errors end with exit status 2, warnings alone with 0.",
        ["debzero check mrpc.yml", "debzero check mrpc.yml --json", "debzero check deepspeed_config.json --ranks 2",
         "debzero check deepspeed_config.json --fix --strict", "debzero check --convert accelerate.yml > job.yml",
         "debzero check --schema > job.schema.json"], without_torch=check_shape)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("job", type=Path, nargs="?", metavar="FILE",
                      help="a job file (YAML) or a DeepSpeed configuration (JSON)")
    what.add_argument("--schema", action="store_true",
                      help="print the job file's JSON Schema, with which editors complete and check a job")
    what.add_argument("--convert", type=Path, metavar="FILE",
                      help="print the job that a configuration of another program comes to (accelerate, axolotl, "
                      "LLaMA-Factory, transformers' TrainingArguments), with what is left out as comments")
    add_ranks(parser)
    parser.add_argument("--fix", action="store_true",
                        help="apply every fix that has only one possible form to the DeepSpeed JSON; "
                        "of a job, to the file that its `deepspeed:` names. The rest of the text stays as it is, and "
                        "FILE.bak holds the file as it was")
    parser.add_argument("--strict", action="store_true", help="treat warnings as errors")
    parser.add_argument("--fast", action="store_true", help="do not read the rows of the data set, only its columns")
    add_json(parser)


def check_shape(options: argparse.Namespace) -> int:
    from debzero.check import shape

    return shape.run(options)


def run(options: argparse.Namespace) -> int:
    if options.schema:
        from debzero.job.reference import as_json, job_schema

        print(as_json(job_schema()), end="")
        return 0
    if options.convert:
        from debzero.check import convert

        return convert.run(options.convert, options.ranks, options.json)
    from debzero.check.file import check

    return check(options.job, options.ranks, options.fix, options.strict, options.json, options.fast)
