"""`debzero bench`: measure, or only make pages from what was measured. The latter needs neither torch nor a GPU host."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Optional

from debzero.bench import page, results
from debzero.errors import InputError, Problem
from debzero.files import write_text


def bench(options: argparse.Namespace) -> int:
    """The exit code."""
    if options.compare:
        return compare(options.compare, options.output)
    if options.render:
        page.write(results.load(options.render), options.render)
        print(f"written: {options.render / page.NAME}")
        return 0
    if options.job is None:
        raise InputError([Problem("debzero bench", "JOB.yml", "is missing",
                                  "give a job file, or --render FOLDER, or --compare A.json B.json")])
    from debzero.bench import runner

    return runner.start(options)


def compare(files: list[Path], target: Optional[Path]) -> int:
    if len(files) < 2 or target is None:
        raise InputError([Problem("debzero bench", "--compare", "takes two or more results.json and -o FILE",
                                  "for example: debzero bench --compare a/results.json b/results.json -o comparison.html")])
    from debzero.bench import comparison

    write_text(target.absolute(), comparison.render([results.load(file) for file in files]))
    print(f"written: {target}")
    return 0
