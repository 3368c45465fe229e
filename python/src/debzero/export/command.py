"""`debzero export` on the command line."""
from __future__ import annotations

import argparse
from pathlib import Path

from debzero.base.command_line import Commands, add_command, add_json, add_run_name


def add_export(commands: Commands) -> None:
    parser = add_command(
        commands, "export", export,
        "Export a trained model to ONNX, or to TensorRT's engines. The result is one folder with graphs that "
        "onnxruntime runs, the tokenizer, the classes, and code to start from; or with engines for this host's GPU, "
        "which take minutes to build and are good for no other GPU, driver or TensorRT. It is written only if it "
        "answers the run's own held-out samples as the original does: its score may differ by half a point, and one "
        "answer in a hundred.",
        ["debzero export demo --to onnx", "debzero export demo --to onnx --precision int8 -o /srv/models/demo",
         "debzero export demo --to onnx --layout triton -o /srv/triton",
         'debzero predict demo "GNU compiler for C++" --engine onnx',
         "debzero export mrpc --to tensorrt --precision fp16"])
    add_run_name(parser)
    parser.add_argument("--to", choices=["onnx", "tensorrt"], required=True, help="the format")
    parser.add_argument("--precision", choices=["fp32", "fp16", "int8"], default="fp32",
                        help="what to compute in: fp16 for GPUs, int8 for CPUs and of onnx alone (default: fp32)")
    parser.add_argument("--layout", choices=["plain", "triton"], default="plain",
                        help="of the folder: the export itself, or, of onnx alone, a model repository for NVIDIA's "
                        "Triton Inference Server (default: plain)")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="the folder to write (default: "
                        "export/FORMAT-PRECISION, or export/triton-PRECISION, in the run's output)")
    parser.add_argument("--accept-loss", action="store_true",
                        help="write it though it loses more than these limits allow; its record says so")
    add_json(parser, "print the record of the export")


def export(options: argparse.Namespace) -> int:
    """The exit code."""
    from debzero.export.exporting import export as run

    return run(options)
