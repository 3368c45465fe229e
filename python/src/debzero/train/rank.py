"""One rank's program: from the process group to the report.

What imports torch is imported in functions: signals must be blocked before any library starts threads.
"""
from __future__ import annotations

import argparse
import logging
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import psutil

from debzero.base import privileges, runtime
from debzero.base.environment import environment
from debzero.base.errors import InputError, OutOfMemory, PassingError, UserError
from debzero.base.failures import as_user_error
from debzero.base.files import nearest
from debzero.base.logs import make_printable
from debzero.base.stack import examples_folder
from debzero.base.terminal import end_with, take_name
from debzero.base.text import printable_lines
from debzero.check.inputs import require_roots
from debzero.deepspeed_json.reader import read_deepspeed
from debzero.job.reader import parse
from debzero.resolve.host import HostGpus, this_host
from debzero.resolve.resolve import ResolvedJob, resolve
from debzero.run.folder import RunFolder
from debzero.run.open import open_folder
from debzero.run.records import ErrorNote
from debzero.train import exchange, placement, rendezvous
from debzero.train.agreement import SIGNALS, Stop, Stopping, block_signals
from debzero.train.memory_retry import with_launchers_choice
from debzero.train.torch_imports import speed_up_imports


def main() -> int:
    parser = argparse.ArgumentParser(description="One rank of a debzero training; start it with a launcher.")
    parser.add_argument("--job", type=Path, default=None, help="the job file (default: the packaged mrpc job)")
    parser.add_argument("--deepspeed", type=Path, help="DeepSpeed's own JSON; it wins over the job's lines")
    parser.add_argument("--again", action="store_true", help="train even if this job has finished")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by DeepSpeed's launcher")
    arguments = parser.parse_args()
    make_printable()
    runtime.find_own_programs()
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": str(arguments.local_rank), "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": "29500"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    block_signals()
    take_name(f"debzero rank {os.environ['RANK']}")
    _die_with_launcher()
    launcher = rendezvous.local_launcher()
    try:
        resolved = _resolve(arguments)
    except InputError as error:
        if os.environ["RANK"] == "0":
            print(error.text(), file=sys.stderr)
        return 2
    except UserError as error:
        if os.environ["RANK"] == "0":
            print(f"debzero: {error}", file=sys.stderr)
        return 1
    folder = RunFolder(resolved.job.output)
    stop = Stop()

    def stopped() -> None:
        if _speaks() and not folder.error_file.exists():
            folder.end("stopped")

    stop.listen(stopped, folder.error_file.exists)
    code = 0
    try:
        _run(resolved, rendezvous.Meeting(folder.folder, launcher), arguments.job or "mrpc", arguments.again, stop)
    except Stopping:
        stopped()
        code = SIGNALS[stop.number]
    except BaseException as error:
        _fail(error, folder, began=stop.orderly.is_set())
    if sys.stdout:  # None: closed
        sys.stdout.flush()
    os._exit(code)  # no destructor of a communication library may turn a finished run into a hanging one


def _resolve(arguments: argparse.Namespace) -> ResolvedJob:
    file = arguments.job or examples_folder() / "mrpc.yml"
    job, problems = parse(file)
    if problems or job is None:
        raise InputError(problems)
    privileges.tighten_umask()
    privileges.become_owner(Path(job.output))  # which debzero's own launcher is already
    if arguments.deepspeed:
        job = job.model_copy(update={"deepspeed": str(arguments.deepspeed.absolute())})
    require_roots(job, file)
    config, problems = read_deepspeed(job, str(file))
    if problems:
        raise InputError(problems)
    hosts = len(placement.hosts())
    ranks = int(os.environ["WORLD_SIZE"]) // hosts
    return with_launchers_choice(resolve(job, this_host(), ranks, str(file), config, hosts))


def _speaks() -> bool:
    """Whether this rank says what all have to say: the first of its host."""
    rank, ranks = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    return rank % (ranks // len(placement.hosts())) == 0


def _die_with_launcher() -> None:
    """A rank whose launcher is killed, without a chance to end its ranks, must not continue unwatched."""
    launcher = environment().launcher_pid
    if launcher is not None:
        end_with(launcher)


def _fail(error: BaseException, folder: RunFolder, began: bool) -> NoReturn:
    """Report why, once for all ranks, and end without waiting for the others. `began`: training had begun, not only its
    preparation."""
    rank = os.environ["RANK"]
    if isinstance(error, InputError):
        if _speaks():
            print(error.text(), file=sys.stderr, flush=True)
        os._exit(2)
    known = as_user_error(error, str(nearest(folder.folder)))
    text = str(known) if known else f"{type(error).__name__}: {error}"
    # What the model and the optimizer hold is no smaller with a smaller micro-batch.
    memory = isinstance(known, OutOfMemory) and began
    if folder.note_first_error(ErrorNote(rank=int(rank), error=text, memory=memory,
                                         passing=isinstance(known, PassingError))):
        if known is None:
            traceback.print_exc()
        print(f"debzero: rank {rank} failed: {printable_lines(text)}", file=sys.stderr, flush=True)
        if not (memory and environment().launcher_pid):  # which may start the ranks again with a smaller micro-batch
            folder.end("failed", text)
    os._exit(1)


def _device(host: HostGpus, resolved: ResolvedJob) -> Any:
    """This rank's device, and the environment that the communication libraries read when they start."""
    import torch

    rank, local = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK"))
    cap = environment().memory_cap_bytes
    if not host.gpus:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.setdefault("LOCAL_SIZE", str(resolved.local_ranks))  # else DeepSpeed asks numactl
        if cap:
            most = psutil.Process().memory_info().data + cap
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // resolved.local_ranks))
        return torch.device("cpu")
    if resolved.shares_gpus:
        # NCCL refuses two ranks on one GPU unless it takes them for two hosts, which then talk over the loopback.
        os.environ.update(NCCL_HOSTID=f"rank{rank}", NCCL_IB_DISABLE="1")
        if resolved.hosts == 1:
            os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    device = torch.device("cuda", local % host.gpus)
    os.environ["LOCAL_RANK"] = str(device.index)  # DeepSpeed takes it for the device's number
    torch.cuda.set_device(device)
    # What DeepSpeed compiles here is for this GPU; it cannot read every list that others write into the variable.
    os.environ["TORCH_CUDA_ARCH_LIST"] = "{}.{}".format(*torch.cuda.get_device_capability(device))
    if cap:
        share = cap / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)
    return device


def _join_deepspeed(device: Any) -> None:
    """Let DeepSpeed use the process group, and let it log only warnings: it announces each setting on stdout."""
    logging.disable(logging.INFO)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    logging.disable(logging.NOTSET)
    if device.type == "cpu":
        from debzero.train import gloo

        gloo.complete()
    deepspeed.init_distributed()  # stage 3 shards the model while it is built, before deepspeed.initialize


def _run(resolved: ResolvedJob, meeting: rendezvous.Meeting, name: object, again: bool, stop: Stop) -> None:
    """Bring the ranks together, open the output folder (unless `debzero train` has), and train."""
    speed_up_imports()
    device = _device(resolved.host, resolved)
    opens = environment().launcher_pid is None
    folder = RunFolder(resolved.job.output)
    # Who makes the ranks' folder must hold the one that it is in.
    opened = opens and meeting.makes_folder and open_folder(resolved, folder, str(name), again)
    try:
        meeting.join("nccl" if device.type == "cuda" else "gloo")
        if resolved.uses_deepspeed:
            _join_deepspeed(device)
        if not opens or exchange.agree(lambda: opened if meeting.makes_folder
                                       else open_folder(resolved, folder, str(name), again)):
            from debzero.train.loop import train

            train(resolved, folder, device, stop)
    finally:
        meeting.leave()
