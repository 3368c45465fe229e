"""`debzero plan` on the command line."""
from __future__ import annotations

import argparse
from pathlib import Path

from debzero.base.command_line import Commands, add_command, add_job, add_json, count, number, wrapped

LEAST, MOST = 1e-6, 1e9  # of what is measured in microseconds, samples per second or days


def add_plan(commands: Commands) -> None:
    parser = add_command(
        commands, "plan", run,
        "Predict a job's memory per rank for every ZeRO stage and offload, and recommend one. With --hosts, predict "
        "its speed over many hosts instead. Needs no GPU and no weights.",
        ["debzero plan mrpc.yml", "debzero plan mrpc.yml --gpus 2 --gpu-memory 40G --ram 256G --nvme 2T",
         "debzero plan mrpc.yml --config llama/config.json --json",
         "debzero plan mrpc.yml --hosts 16 --gpus 8 --link 200G --device H100 --gpu-memory 80G"])
    add_job(parser)
    parser.add_argument("--gpus", type=count, metavar="N", help="GPUs of a host (default: this host's, or 2)")
    parser.add_argument("--gpu-memory", metavar="SIZE", help="memory per GPU, e.g. 40G (default: this host's, or 40G)")
    parser.add_argument("--ram", metavar="SIZE", help="host RAM (default: this host's, or 256G)")
    parser.add_argument("--nvme", metavar="SIZE",
                        help="NVMe space for offload (default: none; 2T on a host without a GPU)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a model's config.json instead of the job's model")
    _add_scale(parser)
    add_json(parser)


def _add_scale(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "many hosts", wrapped("with --hosts: the step time of each layout (plain DDP, ZeRO, tensor, pipeline), the "
                              "smallest link that hides communication, checkpoints and failures"))
    group.add_argument("--hosts", type=count, metavar="N", help="equal hosts")
    group.add_argument("--link", metavar="RATE",
                       help="bits per second between hosts, as collectives reach them, e.g. 200G")
    group.add_argument("--latency", type=number(LEAST, MOST), metavar="US",
                       help="microseconds of one message between hosts (default: 14, NCCL's own figure)")
    group.add_argument("--device", metavar="NAME", help="the GPU, e.g. H100 (default: this host's, or A100); or cpu: "
                       "ranks on processors, whose number a host is --gpus")
    speed = group.add_mutually_exclusive_group()
    speed.add_argument("--peak-share", type=number(LEAST, 1), metavar="SHARE",
                       help="of the GPU's peak that training reaches, e.g. 0.4 (default: 0.372, measured with "
                            "BERT-Large on H200s; 0.312 for models that predict tokens, with GPT-2 XL)")
    speed.add_argument("--samples-per-second", type=number(LEAST, MOST), metavar="N",
                       help="what one rank trains alone with its share of the batch, as `debzero bench JOB --ranks 1` "
                            "measures it, instead of FLOPs")
    group.add_argument("--mtbf", type=number(LEAST, MOST), metavar="DAYS",
                       help="between two failures of one host (default: 264, of Llama 3's training)")
    group.add_argument("--disk", metavar="SIZE", help="bytes of a checkpoint that a host writes in a second (default: "
                       "1G)")


SCALE = ("link", "latency", "device", "peak_share", "samples_per_second", "mtbf", "disk")


def run(options: argparse.Namespace) -> int:
    sizes = {"gpu_memory": options.gpu_memory, "ram": options.ram, "nvme": options.nvme}
    given = {name: getattr(options, name) for name in SCALE if getattr(options, name) is not None}
    if options.hosts is None:
        from debzero.base.errors import InputError, Problem
        from debzero.plan.table import plan_job

        if given:
            raise InputError([Problem("the command line", f"--{name.replace('_', '-')}", "is about many hosts",
                                      "add --hosts, such as --hosts 1") for name in given])
        return plan_job(options.job, options.gpus, sizes, options.config, options.json)
    from debzero.plan.scale_table import plan_scale
    from debzero.plan.site import Options

    names = {"latency": "latency_us", "mtbf": "mtbf_days"}
    asked = Options(options.hosts, options.gpus, sizes=sizes,
                    **{names.get(name, name): value for name, value in given.items()})
    return plan_scale(options.job, asked, options.config, options.json)
