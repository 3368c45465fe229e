"""`debzero predict` on the command line."""
from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from debzero.base.command_line import Commands, add_command, add_json, add_run_name, count
from debzero.predict.engines import ENGINES


def add_predict(commands: Commands) -> None:
    parser = add_command(
        commands, "predict", predict,
        "Ask a trained model. The texts are arguments, or lines of standard input, or the rows of a file. Answers come "
        "in the order of the texts: the likeliest classes with their probabilities, a number, or a text that the model "
        "writes. With --output they are written to a file that appears when it is complete; a command that was "
        "interrupted continues where it stopped, and no row is lost or doubled. With --spool the files that are put "
        "into a folder are answered, until the command is stopped. Texts for a model of two columns come in pairs, on "
        "a line with a tab between them.",
        ['debzero predict demo "GNU compiler for C++"', "debzero predict demo --json < descriptions.txt",
         "debzero predict demo --input reviews.csv --text body --keep id --output answers.csv",
         "debzero predict demo --engine onnx --spool /srv/questions",
         'debzero predict /srv/models/gpt2 "Once upon a time" --sample --max-tokens 100 --stop .'])
    add_run_name(parser, "or the folder of a model")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="what to ask (default: each line of standard input)")
    _add_files(parser)
    parser.add_argument("--top", type=count, metavar="N",
                        help="of a model of classes: list the N likeliest (default: in JSON all, else 3)")
    _add_writing(parser)
    parser.add_argument("--device", type=_device, default="auto", metavar="DEVICE",
                        help="auto, cpu, cuda or cuda:N (default: auto, the first GPU if there is one)")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16", "int8"], default="auto",
                        help="what to compute in (default: auto; fp32 on a CPU, on a GPU bf16 where it has that). "
                        "Of engines onnx and tensorrt: which export to use")
    parser.add_argument("--engine", choices=[*ENGINES], default="torch",
                        help="what computes: torch; on a GPU, for classes and numbers, torch with compiled layers and "
                        "CUDA graphs, which starts later and answers faster; or an export (default: torch)")


def add_release(commands: Commands) -> None:
    parser = add_command(
        commands, "release", release,
        "Let the service debzero-predict@NAME answer with an exported model. The export of the job NAME, or that in a "
        "folder, is copied and checked, and takes the place of the former one at once; the service uses it for the "
        "next file. Earlier releases stay beside it. `systemctl enable --now debzero-predict@NAME` starts it. Members "
        "of the group debzero-spool move files to the folder that its status names; answers appear in out beside it, "
        "and what cannot be read in failed.",
        ["debzero release demo", "debzero release demo --precision int8",
         "debzero release reviews --from /srv/exports/reviews"])
    add_run_name(parser, "which is also what to call the service")
    parser.add_argument("--from", dest="folder", type=Path, metavar="FOLDER",
                        help="an export, where it is not that of the job NAME")
    parser.add_argument("--precision", choices=["auto", "fp32", "fp16", "int8"], default="auto",
                        help="which export of the job (default: auto; fp32, or whatever there is)")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="the folder of all models (default: the service's)")
    add_json(parser)


def release(options: argparse.Namespace) -> int:
    """The exit code."""
    from debzero.predict.release import release as run

    return run(options)


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, metavar="FILE", help="a csv, json, jsonl or parquet file of texts")
    parser.add_argument("--output", type=Path, metavar="FILE",
                        help="with --input: write a .csv, .jsonl or .parquet file; .jsonl has all probabilities")
    parser.add_argument("--spool", type=Path, metavar="FOLDER",
                        help="answer the files that are moved into FOLDER/in: FOLDER/out gets a file of the same name, "
                        "FOLDER/failed what cannot be read, with a sentence")
    parser.add_argument("--text", type=_names, metavar="COLUMN[,COLUMN]",
                        help="the input's columns of texts (default: as the model's job named them)")
    parser.add_argument("--keep", type=_names, default=[], metavar="COLUMN[,...]",
                        help="columns of the input to copy into the answers")
    add_json(parser, "print a JSON object per line")


def _add_writing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models that write (GPT-2, T5, ...); by default greedily")
    group.add_argument("--max-tokens", type=count, metavar="N",
                       help="write at most N tokens (default: the job's max_answer_length; 50 after a text)")
    group.add_argument("--beams", type=count, metavar="N", help="look for the likeliest text among N at a time")
    group.add_argument("--sample", action="store_true", help="draw each token at random by its probability")
    group.add_argument("--temperature", type=_positive, metavar="T", help="of --sample; less is safer (default: 1)")
    group.add_argument("--top-k", type=_whole, metavar="K",
                       help="of --sample: the likeliest K tokens, 0 for all (default: 50)")
    group.add_argument("--top-p", type=_share, metavar="P",
                       help="of --sample: the likeliest tokens, with a share P of the probability (default: 1)")
    group.add_argument("--seed", type=_whole, metavar="N", help="of --sample: draw the same texts each time")
    group.add_argument("--stop", action="append", default=[], metavar="TOKEN",
                       help="end a text at this token, too; may be given several times")


def _names(text: str) -> list[str]:
    names = text.split(",")
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"must be different names, separated by commas, not {text!r}")
    return names


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda or cuda:N, not {text!r}")
    return text


def _whole(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, not {text!r}")
    return int(text)


def _positive(text: str) -> float:
    if not re.fullmatch(r"\d{1,9}(\.\d*)?|\.\d+", text) or float(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return float(text)


def _share(text: str) -> float:
    value = _positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and up to 1, not {text!r}")
    return value


def predict(options: argparse.Namespace) -> int:
    """The exit code."""
    # Before torch is loaded: its threads sleep while they wait for each other. Spinning, as they do by default, makes
    # small batches several times as slow where other processes want the processors, too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if options.spool is not None:
        from debzero.predict.watch import watch

        return watch(options)
    from debzero.predict.ask import predict as ask

    return ask(options)
