"""What the commands' parsers share. Only the standard library is needed: a checkout and the package's build have
--help without the Python environment."""
from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional

from debzero.base.text import short

JOB_HELP = "the job file (YAML)"
RANKS_HELP = "processes to train with (default: the job's, or one per GPU)"
DIGITS = 12  # of a number of things, at most
NAME_HELP = "what to call this host in the results (default: its host name)"

Commands = Any  # what argparse's add_subparsers returns


def wrapped(text: str) -> str:
    """`text` in lines as wide as those that argparse makes of the options' help."""
    return textwrap.fill(text, max(shutil.get_terminal_size().columns - 2, 20), break_on_hyphens=False)


Run = Callable[[argparse.Namespace], int]  # a command, which returns its exit code


def add_command(commands: Commands, name: str, run: Run, text: str, examples: Sequence[str],
                without_torch: Optional[Run] = None) -> argparse.ArgumentParser:
    """A command's parser. The first sentence of `text` is its line in `debzero --help`. `without_torch` is what it
    does where the Python environment is missing, if that is something else."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, allow_abbrev=False, help=text.split(".")[0][0].lower() + text.split(".")[0][1:],
        description=wrapped(text),
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(run=run, without_torch=without_torch)
    return parser


def add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path, metavar="JOB.yml", help=JOB_HELP)


def add_ranks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ranks", type=count, metavar="N", help=RANKS_HELP)


def add_steps(parser: argparse.ArgumentParser) -> None:
    """How long a run is measured, in optimizer steps."""
    parser.add_argument("--steps", type=count, default=20, metavar="N",
                        help="optimizer steps to measure (default: %(default)s)")
    parser.add_argument("--warmup", type=count, default=10, metavar="N",
                        help="unmeasured steps beforehand; compiling and CUDA graphs take the first two "
                             "(default: %(default)s)")


def add_json(parser: argparse.ArgumentParser, text: str = "print JSON") -> None:
    parser.add_argument("--json", action="store_true", help=text)


def add_run_name(parser: argparse.ArgumentParser, more: str = "", **options: Any) -> None:
    """A run, by the name of its job; the shell completes it. `more`: what else may be named."""
    last = f"an output folder, {more}" if more else "or an output folder"
    name = parser.add_argument("name", metavar="NAME", help=f"a job in /etc/debzero/jobs, a job file, {last}",
                               **options)
    name.completer = _job_names  # type: ignore[attr-defined]


def _job_names(prefix: str, **_: Any) -> list[str]:
    from debzero.base.stack import jobs_folder

    return [path.stem for path in jobs_folder().glob(f"{prefix}*.yml")]


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or len(text) > DIGITS or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1{_limit(text)}, not {short(text)}")
    return int(text)


def _limit(text: str) -> str:
    return f" and at most {DIGITS} digits" if len(text) > DIGITS else ""


def number(least: float, most: float) -> Callable[[str], float]:
    """A parser of numbers from `least` to `most`. What nobody measures is refused: its reciprocal, or a sum of such,
    would be infinite."""
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be a number from {_plain(least)} to {_plain(most)}, not "
                                             f"{short(text)}")
        return value
    return parse


def _plain(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def list_of(*choices: Any) -> Callable[[str], list[Any]]:
    """A parser of comma-separated lists of `choices`."""
    def parse(text: str) -> list[Any]:
        known = {str(choice): choice for choice in choices}
        given = text.split(",")
        unknown = next((name for name in given if name not in known), None)
        if unknown is not None:
            raise argparse.ArgumentTypeError(f"{short(unknown)} is not one of {', '.join(known)} (separate several "
                                             "with commas)")
        return [known[name] for name in given]
    return parse
