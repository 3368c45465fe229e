"""The command line: the table of commands. Each command's parser and texts are in its package; what it needs beyond the
standard library is imported when it runs."""
from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, Optional

import debzero.bench.command
import debzero.check.command
import debzero.doctor.command
import debzero.export.command
import debzero.plan.command
import debzero.predict.command
import debzero.run.command
import debzero.train.command
import debzero.tune.command
from debzero import __version__
from debzero.base.command_line import Run, wrapped
from debzero.base.logs import make_printable
from debzero.base.text import did_you_mean, printable

# In the order of `debzero --help`.
COMMANDS = (
    debzero.train.command.add_train, debzero.check.command.add_check, debzero.plan.command.add_plan,
    debzero.run.command.add_status, debzero.run.command.add_stop, debzero.predict.command.add_predict,
    debzero.export.command.add_export, debzero.predict.command.add_release, debzero.doctor.command.add_doctor,
    debzero.tune.command.add_tune, debzero.bench.command.add_bench)

EPILOG = """exit status:
  0  done
  1  failed; of doctor: the host cannot train; of status: the run stopped,
     failed or is not started
  2  bad input: trying again does not help
  3  the run failed three times at the same step and will not be
     retried
  129, 130, 143  stopped by SIGHUP, SIGINT, SIGTERM

examples:
  systemctl start debzero@demo
  debzero status demo --watch"""


class _Parser(argparse.ArgumentParser):
    """argparse's, which quotes nothing that a terminal would obey, and takes options between a list's words, too."""

    _parsing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        lists = [action for action in self._get_positional_actions() if action.nargs == "*"]
        if not lists or self._parsing or "_ARGCOMPLETE" in os.environ:
            return super().parse_known_args(args, namespace)
        self._parsing = True  # for it calls this method
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._parsing = False

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


class _TopParser(_Parser):
    """With a suggestion for a misspelled command or option."""

    commands: argparse._SubParsersAction[_Parser]
    given: Sequence[str] = ()  # the arguments that are being parsed

    def error(self, message: str) -> NoReturn:
        command = next((text for text in self.given if not text.startswith("-")), None)
        known = self.commands.choices
        if "invalid choice" in message and command not in known:
            message = f"unknown command {command!r}: {did_you_mean(command, list(known))}"
        elif message.startswith("unrecognized arguments: -"):
            option = message.split()[2].split("=")[0]
            parser: _Parser = known.get(command or "", self)
            options = [name for name in parser._option_string_actions if name.startswith("--")]
            message = f"unknown option {option!r}: {did_you_mean(option, options)}"
        super().error(message)


def parser() -> _TopParser:
    top = _TopParser(prog="debzero", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
                  description=wrapped("Fine-tune Transformers with DeepSpeed ZeRO: a job is a YAML file, a run is a "
                                      "folder."), epilog=EPILOG)
    top.add_argument("--version", action="version", version=f"debzero {__version__}")
    top.commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for add in COMMANDS:
        add(top.commands)
    try:
        import argcomplete
    except ImportError:  # a checkout and the package's build have --help without the environment
        pass
    else:
        argcomplete.autocomplete(top)
    return top


def main(arguments: Optional[list[str]] = None) -> int:
    """Run one command; the return value is the exit code."""
    make_printable()
    top = parser()
    top.given = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A locale that lacks a character must not end a command. The journal has both streams, as they are written.
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    options = top.parse_args(top.given)
    if options.command is None:
        top.print_help(sys.stderr)
        return 2
    try:
        code = _run(options)
        if sys.stdout:  # None: closed
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # `debzero status demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 0


def _call(options: argparse.Namespace) -> int:
    """Run the command, or where the Python environment is missing what it can do without."""
    from debzero.base import runtime, systemd
    from debzero.base.errors import InputError, Problem

    here = runtime.is_here()
    run: Run = options.run if here else options.without_torch or options.run
    try:
        if getattr(options, "doctor", False) and (code := debzero.doctor.command.for_a_job()):
            return code
        return run(options)
    except ImportError:
        if here:
            raise
        reason, fix = runtime.missing()
        systemd.notify(f"STATUS={reason} -> {fix}")
        raise InputError([Problem(f"debzero {options.command}", "environment", reason, fix)]) from None


def _run(options: argparse.Namespace) -> int:
    """The command's exit code, after printing what it could not do."""
    from debzero.base import runtime
    from debzero.base.errors import InputError, UserError
    from debzero.base.privileges import keep_to_roots

    runtime.find_own_programs()
    keep_to_roots("PATH")
    try:
        return _call(options)
    except InputError as error:
        if getattr(options, "json", False):
            import json

            changes = {"changes": error.changes} if error.changes else {}
            print(json.dumps({"ok": False, "problems": [p.as_dict() for p in error.problems], **changes}, indent=2))
        else:
            print(error.text(), file=sys.stderr)
        return 2
    except UserError as error:
        print(f"debzero: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
