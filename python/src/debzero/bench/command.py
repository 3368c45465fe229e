"""`debzero bench`: measure, or only make pages from what was measured. The latter needs neither torch nor a GPU host."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Optional

from debzero.base.errors import InputError, Problem
from debzero.base.files import write_text
from debzero.bench import page, results


def bench(options: argparse.Namespace) -> int:
    """The exit code."""
    if options.compare:
        return compare(options.compare, options.output)
    if options.render:
        file = results.file_of(options.render)
        page.write(results.load(file), file)
        print(f"written: {file.with_suffix('.html')}, and .csv and .md beside it")
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

    made = comparison.render([results.load(file) for file in files])
    target = target / "comparison.html" if target.is_dir() else target
    try:
        write_text(target.absolute(), made)
    except OSError as error:
        raise InputError([Problem("debzero bench", "--output", f"{target} cannot be written: {error.strerror}",
                                  "give a file in a folder that is there and that this user may write to")]) from None
    print(f"written: {target}")
    return 0
