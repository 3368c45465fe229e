"""The command line. Only the standard library is imported until a subcommand runs, so --help works anywhere, at once."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Callable, Optional

from debzero import __version__

JOB_HELP = "the job file (YAML)"
NAME_HELP = "what to call this host in the results (default: its host name)"
WARMUP_HELP = "steps before them that do not count; what is compiled and recorded on a GPU takes the first two (default: 10)"


def _job_names(prefix: str, **_: Any) -> list[str]:
    """Completion: the names of the host's jobs."""
    from debzero.base.stack import jobs_folder

    return [p.stem for p in jobs_folder().glob(f"{prefix}*.yml")]


def _command(commands: Any, name: str, text: str, examples: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text.split(".")[0][0].lower() + text.split(".")[0][1:], description=text,
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples.split("\n")),
        formatter_class=argparse.RawDescriptionHelpFormatter)
    return parser


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="debzero", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Fine-tune Transformers with DeepSpeed ZeRO: a job is a YAML file, a run is a folder.",
        epilog="exit status:\n  0  done\n  1  the run failed\n  2  bad input: trying again does not help\n"
               "  3  the run failed the same way three times in a row: given up\n"
               "  129, 130, 143  stopped by SIGHUP, SIGINT, SIGTERM\n\n"
               "examples:\n  debzero check /etc/debzero/jobs/demo.yml\n  systemctl start debzero@demo\n"
               "  debzero status demo --watch")
    top.add_argument("--version", action="version", version=f"debzero {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    train = _command(commands, "train", "Train a job, from its data to a saved model and a report. A finished job is not "
                     "trained twice;\nan interrupted one goes on from its newest checkpoint.",
                     "debzero train mrpc.yml\ndebzero train mrpc.yml --ranks 2\ndebzero train mrpc.yml --again")
    train.add_argument("job", type=Path, metavar="JOB.yml", help=JOB_HELP)
    train.add_argument("--ranks", type=_count, metavar="N", help="processes to train with (default: the job's, or one per GPU)")
    train.add_argument("--again", action="store_true", help="train a finished job again; its results move to archive/")

    check = _command(commands, "check", "Check a job, or DeepSpeed's own JSON, without starting it. All problems are shown at once, "
                     "each with its\nreason and its fix. Errors end with exit status 2, warnings alone with 0.",
                     "debzero check mrpc.yml\ndebzero check mrpc.yml --json\ndebzero check deepspeed_config.json --ranks 2\n"
                     "debzero check deepspeed_config.json --fix --strict")
    check.add_argument("job", type=Path, metavar="FILE", help="a job file (YAML) or a DeepSpeed configuration (JSON)")
    check.add_argument("--ranks", type=_count, metavar="N", help="as for train")
    check.add_argument("--fix", action="store_true", help="correct the DeepSpeed JSON where only one change can be meant; of a job, the "
                       "file that its `deepspeed:` names")
    check.add_argument("--strict", action="store_true", help="take warnings for errors")
    check.add_argument("--json", action="store_true", help="print JSON")

    plan_job = _command(commands, "plan", "Predict a job's memory per rank for every ZeRO stage and offload, and recommend one.\n"
                    "Needs no GPU and no weights.",
                    "debzero plan mrpc.yml\ndebzero plan mrpc.yml --gpus 2 --gpu-memory 40G --ram 256G --nvme 2T\n"
                    "debzero plan mrpc.yml --config llama/config.json --json")
    plan_job.add_argument("job", type=Path, metavar="JOB.yml", help=JOB_HELP)
    plan_job.add_argument("--gpus", type=_count, metavar="N", help="GPUs (default: this host's, or 2)")
    plan_job.add_argument("--gpu-memory", metavar="SIZE", help="of each GPU, such as 40G (default: this host's, or 40G)")
    plan_job.add_argument("--ram", metavar="SIZE", help="the host's memory (default: this host's, or 256G)")
    plan_job.add_argument("--nvme", metavar="SIZE", help="room for offloading to NVMe (default: none, or 2T without a GPU here)")
    plan_job.add_argument("--config", type=Path, metavar="FILE", help="a model's config.json in place of the job's model")
    plan_job.add_argument("--json", action="store_true", help="print JSON")

    status = _command(commands, "status", "Show how far a run is, or its report. Without a name: all jobs of this host.",
                      "debzero status\ndebzero status demo\ndebzero status demo --watch\ndebzero status /var/lib/debzero/demo --json")
    name = status.add_argument("name", metavar="NAME", nargs="?", help="a job in /etc/debzero/jobs, a job file, or an output folder")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.add_argument("--watch", action="store_true", help="follow the run until it ends")

    stop = _command(commands, "stop", "Stop a run after its current step, with a checkpoint that the next start goes on from. "
                    "Returns when it is written.", "debzero stop demo\ndebzero stop /var/lib/debzero/demo")
    running = stop.add_argument("name", metavar="NAME", help="as for status")

    doctor = _command(commands, "doctor", "Examine this host, from its GPUs to a training step of two ranks. The first failing line is the "
                      "cause,\nwith what to do about it; what follows from it is skipped. Nothing is changed or left behind.",
                      "debzero doctor\ndebzero doctor --fast --gpus 2\ndebzero doctor --nvme /data --json")
    doctor.add_argument("--fast", action="store_true", help="leave out what takes long: NCCL, the hub, NVMe speed, the training step")
    doctor.add_argument("--gpus", type=_count, metavar="N", help="GPUs that must be there (default: $DEBZERO_GPUS, or those that are)")
    doctor.add_argument("--nvme", type=Path, metavar="PATH", help="also try this folder as an offload path")
    doctor.add_argument("--json", action="store_true", help="print JSON")

    tune = _command(commands, "tune", "Find the micro-batch with the highest samples/s that fits, and write it into the job file. The "
                    "global batch\nstays. `debzero plan` says where to begin; a few short trials, each in its own process, do the rest.\n"
                    "An interrupted search goes on with the trials that it has made.",
                    "debzero tune mrpc.yml\ndebzero tune mrpc.yml --search stage,offload,checkpointing --dry-run\n"
                    "debzero tune mrpc.yml --json")
    tune.add_argument("job", type=Path, metavar="JOB.yml", help=JOB_HELP)
    tune.add_argument("--ranks", type=_count, metavar="N", help="as for train")
    tune.add_argument("--search", type=_some_of("stage", "offload", "checkpointing"), default=[], metavar="LIST",
                      help="also try other settings of these: some of stage,offload,checkpointing")
    tune.add_argument("--steps", type=_count, default=20, metavar="N", help="optimizer steps to measure in each trial (default: 20)")
    tune.add_argument("--warmup", type=_count, default=10, metavar="N", help=WARMUP_HELP)
    tune.add_argument("--limit", type=_count, default=10, metavar="MINUTES", help="after which a trial is given up (default: 10)")
    tune.add_argument("--exhaustive", action="store_true", help="then try all that is left as well: how good the search is")
    tune.add_argument("--name", metavar="HOST", help=NAME_HELP)
    tune.add_argument("--dry-run", action="store_true", help="only say what would be written")
    tune.add_argument("--json", action="store_true", help="print JSON")

    bench = _command(commands, "bench", "Measure what ZeRO and offload cost and save for a job on this host: plain PyTorch and the stages\n"
                     "1 to 3, each with and without offload, each run in a process of its own. Results are results.json, .csv, .md\n"
                     "and a page, results.html. An interrupted bench goes on where it was; a configuration that fails is a row with\n"
                     "its reason, and the next start tries it again unless memory or time did not suffice.",
                     "debzero bench mrpc.yml\ndebzero bench mrpc.yml --ranks 4 --share-gpu --stages 2,3 --repeats 1\n"
                     "debzero bench --render /var/lib/debzero/mrpc-bench\n"
                     "debzero bench --compare a/results.json b/results.json -o comparison.html")
    bench.add_argument("job", type=Path, metavar="JOB.yml", nargs="?", help=JOB_HELP)
    bench.add_argument("--ranks", type=_count, metavar="N", help="as for train")
    bench.add_argument("--share-gpu", action="store_true", help="let ranks share GPUs: speed is not comparable, and memory lacks the "
                       "second bucket of overlapped communication (ZeRO-1 and 2)")
    bench.add_argument("--cap", type=_count, metavar="GIB", help="let each rank take no more of its GPU, as if it were a smaller one")
    bench.add_argument("--stages", type=_some_of("none", 1, 2, 3), default=["none", 1, 2, 3], metavar="LIST",
                       help="some of none,1,2,3 (default: all)")
    bench.add_argument("--offload", type=_some_of("none", "cpu", "nvme"), metavar="LIST",
                       help="some of none,cpu,nvme (default: none,cpu, and nvme if the job has zero.nvme_path)")
    bench.add_argument("--steps", type=_count, default=20, metavar="N", help="optimizer steps to measure in each run (default: 20)")
    bench.add_argument("--warmup", type=_count, default=10, metavar="N", help=WARMUP_HELP)
    bench.add_argument("--repeats", type=_count, default=3, metavar="N", help="runs of each configuration (default: 3)")
    bench.add_argument("--limit", type=_count, default=30, metavar="MINUTES", help="after which a run is given up (default: 30)")
    bench.add_argument("-o", "--output", type=Path, metavar="PATH", help="the folder for the results (default: the job's output with "
                       "-bench behind it); with --compare, the page")
    bench.add_argument("--name", metavar="HOST", help=NAME_HELP)
    bench.add_argument("--again", action="store_true", help="measure everything anew; earlier results move to archive/")
    bench.add_argument("--json", action="store_true", help="print results.json")
    bench.add_argument("--render", type=Path, metavar="FILE", help="only make the tables and the page of results anew (a folder or JSON)")
    bench.add_argument("--compare", type=Path, nargs="+", metavar="FILE", help="only make one page of several results.json")

    for argument in (name, running):
        argument.completer = _job_names  # type: ignore[attr-defined]
    try:
        import argcomplete
    except ImportError:  # a host without the environment still has --help
        pass
    else:
        argcomplete.autocomplete(top)
    return top


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _some_of(*choices: Any) -> Callable[[str], list[Any]]:
    """A parser of comma-separated lists of `choices`."""
    def parse(text: str) -> list[Any]:
        known = {str(choice): choice for choice in choices}
        wrong = [word for word in text.split(",") if word not in known]
        if wrong:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(known)} (give some, with commas between)")
        return [known[word] for word in text.split(",")]
    return parse


def main(arguments: Optional[list[str]] = None) -> int:
    """Run one subcommand; the return value is the exit code."""
    options = parser().parse_args(arguments)
    from debzero.base.errors import InputError, UserError

    try:
        return {"train": _train, "check": _check, "plan": _plan, "status": _status, "stop": _stop,
                "doctor": _doctor, "tune": _tune, "bench": _bench}[options.command](options)
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


def _train(options: argparse.Namespace) -> int:
    from debzero.control import block_signals

    block_signals()
    from debzero import checks, launch
    from debzero.base.errors import as_text

    plan_job, warnings = checks.examine(options.job, options.ranks, options.again)
    if warnings:
        print(as_text(warnings), file=sys.stderr, flush=True)
    return launch.train(plan_job, options.job.absolute(), options.again)


def _check(options: argparse.Namespace) -> int:
    from debzero import lintfile

    return lintfile.check(options.job, options.ranks, options.fix, options.strict, options.json)


def _plan(options: argparse.Namespace) -> int:
    from debzero.plan.command import plan_job

    sizes = {"gpu_memory": options.gpu_memory, "ram": options.ram, "nvme": options.nvme}
    return plan_job(options.job, options.gpus, sizes, options.config, options.json)


def _status(options: argparse.Namespace) -> int:
    from debzero.run.status import status

    return status(options.name, options.json, options.watch)


def _stop(options: argparse.Namespace) -> int:
    from debzero.run.stop import stop

    return stop(options.name)


def _doctor(options: argparse.Namespace) -> int:
    from debzero.doctor.command import doctor

    return doctor(options.gpus, options.fast, options.nvme, options.json)


def _tune(options: argparse.Namespace) -> int:
    from debzero.tune import tune

    return tune(options)


def _bench(options: argparse.Namespace) -> int:
    from debzero.bench.command import bench

    return bench(options)
