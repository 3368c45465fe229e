"""The command line: the table of commands. Each one's parser and texts are in its package, which imports more only when
it runs."""
from __future__ import annotations

import argparse
import sys
from typing import NoReturn, Optional

import debzero.bench.command
import debzero.check.command
import debzero.doctor.command
import debzero.plan.command
import debzero.run.command
import debzero.train.command
import debzero.tune.command
from debzero import __version__
from debzero.base.text import did_you_mean

# In the order of `debzero --help`.
COMMANDS = (
    debzero.train.command.add_train, debzero.check.command.add_check, debzero.plan.command.add_plan,
    debzero.run.command.add_status, debzero.run.command.add_stop, debzero.doctor.command.add_doctor,
    debzero.tune.command.add_tune, debzero.bench.command.add_bench)

EPILOG = """exit status:
  0  done
  1  the run failed
  2  bad input: trying again does not help
  3  the run failed the same way three times in a row: given up
  129, 130, 143  stopped by SIGHUP, SIGINT, SIGTERM

examples:
  debzero check /etc/debzero/jobs/demo.yml
  systemctl start debzero@demo
  debzero status demo --watch"""


class _Parser(argparse.ArgumentParser):
    """argparse's, with a suggestion for a misspelled command."""

    commands: Optional[argparse._SubParsersAction[argparse.ArgumentParser]] = None

    def error(self, message: str) -> NoReturn:
        known = list(self.commands.choices) if self.commands else []
        unknown = next((word for word in sys.argv[1:2] if not word.startswith("-") and word not in known), None)
        if known and unknown is not None and "invalid choice" in message:
            message = f"unknown command {unknown!r}: {did_you_mean(unknown, known)}"
        super().error(message)


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog="debzero", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EPILOG,
                  description="Fine-tune Transformers with DeepSpeed ZeRO: a job is a YAML file, a run is a folder.")
    top.add_argument("--version", action="version", version=f"debzero {__version__}")
    top.commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True,
                                      parser_class=argparse.ArgumentParser)
    for add in COMMANDS:
        add(top.commands)
    try:
        import argcomplete
    except ImportError:  # a host without the environment still has --help
        pass
    else:
        argcomplete.autocomplete(top)
    return top


def main(arguments: Optional[list[str]] = None) -> int:
    """Run one command; the return value is the exit code."""
    options = parser().parse_args(arguments)
    from debzero.base.errors import InputError, UserError

    try:
        code: int = options.run(options)
        return code
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
    except BrokenPipeError:  # `debzero status demo | head`
        sys.stderr.close()
        return 0
