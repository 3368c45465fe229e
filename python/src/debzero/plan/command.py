"""`debzero plan` on the command line."""
from __future__ import annotations

import argparse
from pathlib import Path

from debzero.base.command_line import Commands, add_command, add_job, add_json, count


def add_plan(commands: Commands) -> None:
    parser = add_command(
        commands, "plan", run,
        "Predict a job's memory per rank for every ZeRO stage and offload, and recommend one. Needs no GPU and no "
        "weights.",
        ["debzero plan mrpc.yml", "debzero plan mrpc.yml --gpus 2 --gpu-memory 40G --ram 256G --nvme 2T",
         "debzero plan mrpc.yml --config llama/config.json --json"])
    add_job(parser)
    parser.add_argument("--gpus", type=count, metavar="N", help="GPUs (default: this host's, or 2)")
    parser.add_argument("--gpu-memory", metavar="SIZE", help="memory per GPU, e.g. 40G (default: this host's, or 40G)")
    parser.add_argument("--ram", metavar="SIZE", help="host RAM (default: this host's, or 256G)")
    parser.add_argument("--nvme", metavar="SIZE",
                        help="NVMe space for offload (default: none; 2T on a host without a GPU)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a model's config.json instead of the job's model")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    from debzero.plan.table import plan_job

    sizes = {"gpu_memory": options.gpu_memory, "ram": options.ram, "nvme": options.nvme}
    return plan_job(options.job, options.gpus, sizes, options.config, options.json)
