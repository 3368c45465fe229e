"""`debzero bench` on the command line: measure, or only render what was measured, which needs neither torch nor a GPU
host."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Optional

from debzero.base.command_line import (
    JOB_HELP,
    NAME_HELP,
    Commands,
    add_command,
    add_json,
    add_ranks,
    add_steps,
    count,
    list_of,
)


def add_bench(commands: Commands) -> None:
    parser = add_command(
        commands, "bench", bench,
        "Measure what ZeRO and offload cost and save on this host. The job runs with plain DDP, and with ZeRO-1 to 3 "
        "with and without offload, or as it divides its model (`parallel`) and with ZeRO-2, each time in a process of "
        "its own; where several ranks have a GPU each, also on one rank alone, to say whether the others pay. The "
        "results are written to results.json, results.csv, results.md and a web page, results.html. An interrupted "
        "bench resumes where it stopped. A configuration that fails is listed with the reason; the next start tries "
        "it again unless it ran out of memory or time.",
        ["debzero bench mrpc.yml", "debzero bench mrpc.yml --ranks 4 --share-gpu --stages 2,3 --repeats 1",
         "debzero bench mrpc --inference", "debzero bench --render /var/lib/debzero/mrpc-bench",
         "debzero bench --compare a/results.json b/results.json -o comparison.html"])
    parser.add_argument("job", type=Path, metavar="JOB.yml", nargs="?", help=JOB_HELP)
    add_ranks(parser)
    _add_measuring(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="PATH",
                        help="the folder for the results (default: the job's output with "
                        "-bench appended); with --compare, the page")
    parser.add_argument("--name", metavar="HOST", help=NAME_HELP)
    parser.add_argument("--again", action="store_true",
                        help="measure everything again; earlier results move to archive/")
    add_json(parser, "print results.json")
    parser.add_argument("--inference", action="store_true",
                        help="measure how fast a run's trained model answers instead, with each engine and precision "
                             "of this host, at batches of 1, 8 and 32 rows; JOB.yml may also be a run's name")
    parser.add_argument("--render", type=Path, metavar="FILE",
                        help="only render the tables and the page of results (a folder or JSON)")
    parser.add_argument("--compare", type=Path, nargs="+", metavar="FILE",
                        help="only render one page of several results.json")


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--share-gpu", action="store_true",
                        help="let ranks share GPUs: speed is not comparable, and memory lacks the "
                        "second bucket of overlapped communication (ZeRO-1 and 2)")
    parser.add_argument("--cap", type=count, metavar="GIB", help="limit each rank to this much GPU memory")
    parser.add_argument("--stages", type=list_of("none", 1, 2, 3), metavar="LIST",
                        help="some of none,1,2,3 (default: all; 2 beside a job's own division of its model)")
    parser.add_argument("--offload", type=list_of("none", "cpu", "nvme"), metavar="LIST",
                        help="some of none,cpu,nvme (default: none,cpu, and nvme if the job has zero.nvme_path; none "
                        "beside a division)")
    add_steps(parser)
    parser.add_argument("--repeats", type=count, default=3, metavar="N", help="runs of each configuration (default: 3)")
    parser.add_argument("--limit", type=count, default=30, metavar="MINUTES", help="time limit per run (default: 30)")


def bench(options: argparse.Namespace) -> int:
    """The exit code."""
    from debzero.base import privileges
    from debzero.base.errors import InputError, Problem
    from debzero.base.text import printable
    from debzero.bench import page, results

    if options.compare:
        return compare(options.compare, options.output)
    if options.render:
        file = results.file_of(options.render)
        privileges.become_owner(file)
        page.write_shown(results.load(file), file)
        print(printable(f"written: {file.with_suffix('.html')}, and .csv and .md beside it"))
        return 0
    if options.job is None:
        raise InputError([Problem("debzero bench", "JOB.yml", "is missing",
                                  "give a job file, or --render FOLDER, or --compare A.json B.json")])
    if options.inference:
        from debzero.bench import latency

        return latency.start(options)
    from debzero.bench import runner

    return runner.start(options)


def compare(files: list[Path], target: Optional[Path]) -> int:
    """Write one page of several results; the exit code."""
    from debzero.base import privileges
    from debzero.base.errors import InputError, Problem
    from debzero.base.files import write_text
    from debzero.base.text import printable
    from debzero.bench import comparison, results

    if len(files) < 2 or target is None:
        example = "debzero bench --compare a/results.json b/results.json -o comparison.html"
        raise InputError([Problem("debzero bench", "--compare", "takes two or more results.json and -o FILE",
                                  f"for example: {example}")])
    loaded = []
    for file in files:
        with privileges.acting_as_owner(file):
            loaded.append(results.load(file))
    page = comparison.render(loaded)
    target = target / "comparison.html" if target.is_dir() else target
    try:
        with privileges.acting_as_owner(target):
            write_text(target.absolute(), page)
    except OSError as error:
        raise InputError([Problem("debzero bench", "--output", f"{target} cannot be written: {error.strerror}",
                                  "give a file in an existing folder that this user may write to")]) from None
    print(printable(f"written: {target}"))
    return 0
