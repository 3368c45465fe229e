"""The end of the chain, where the host must show what it can: memory, NVMe, NCCL, the hub, and a training step."""
from __future__ import annotations

import fcntl
import json
import mmap
import os
import re
import resource
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Callable

from debzero.base import interpreter
from debzero.base.files import read_json
from debzero.doctor.chain import Check, Context
from debzero.doctor.host_check import CheckResult, fail, ok, skip, warn
from debzero.doctor.process import ENDED_WITH_ANOTHER, environment, run, run_side_by_side

CAP_IPC_LOCK = 14  # the bit of capabilities(7)
LOCKED_MB = 1024   # less than this stops offloading even of small models
BLOCK, MOST, SECONDS = 2**23, 2**30, 4  # NVMe: bytes a request, bytes and seconds in all
NCCL_SECONDS, HUB_SECONDS, STEP_SECONDS = 90, 5, 150
# Where libraries write unasked.
LIBRARY_FOLDERS = ("TMPDIR", "HOME", "XDG_CACHE_HOME", "HF_HOME", "CUDA_CACHE_PATH", "TRITON_CACHE_DIR")


def memlock(context: Context) -> CheckResult:
    """Pinned host memory is locked memory, for all but CUDA's own allocator, which asks the driver."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    rights = re.search(r"^CapEff:\s*(\w+)", context.probe.read("/proc/self/status"), re.MULTILINE)
    if limit == resource.RLIM_INFINITY:
        return ok("no limit")
    found = f"{limit // 2**20} MiB of memory may be locked here"
    if rights and int(rights.group(1), 16) >> CAP_IPC_LOCK & 1:
        return ok(f"{found}, a limit that does not bind root")
    if limit < LOCKED_MB * 2**20:
        return warn(found, "start jobs as debzero@NAME.service, which lifts the limit; raise memlock in "
                    "/etc/security/limits.conf; or for a container set --ulimit memlock=-1")
    return ok(found)


def _speed(file: IO[bytes], action: Callable[[int, Sequence[mmap.mmap], int], int], buffer: mmap.mmap,
           most: int) -> float:
    """Bytes a second of one pass over the file, in large requests that bypass the page cache."""
    done, start = 0, time.perf_counter()
    while done < most and time.perf_counter() - start < SECONDS:
        done += action(file.fileno(), [buffer], done)
    os.fsync(file.fileno())
    return done / (time.perf_counter() - start)


def nvme(context: Context) -> CheckResult:
    """DeepSpeed opens its swap files with O_DIRECT. The file measured here has no name, so none can be left behind."""
    folder = context.nvme
    if folder is None:
        return skip("not requested (--nvme PATH)")
    if not folder.is_dir():
        return fail(f"{folder} is not a folder", "create it, or give another --nvme PATH")
    _, kind = context.probe.run("stat", "--file-system", "--format=%T", str(folder))
    if kind in ("tmpfs", "ramfs"):
        return fail(f"{folder} is a {kind}: memory, where O_DIRECT fails and nothing is offloaded",
                    "choose a folder on an NVMe disk")
    space = os.statvfs(folder)
    most = min(MOST, space.f_bavail * space.f_frsize // 2 // BLOCK * BLOCK)
    if most < BLOCK:
        return fail(f"{folder} has no room for a test file", "free some space there, or choose another folder")
    try:
        # A map starts at a page, as O_DIRECT needs it.
        with TemporaryFile(dir=folder, buffering=0) as file, mmap.mmap(-1, BLOCK) as buffer:
            fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_DIRECT)
            buffer.write(os.urandom(2**16) * (BLOCK // 2**16))
            if context.fast:
                os.pwritev(file.fileno(), [buffer], 0)
                return ok(f"O_DIRECT works in {folder} ({kind})")
            write = _speed(file, os.pwritev, buffer, most)
            size = file.seek(0, os.SEEK_END)
            read = _speed(file, os.preadv, buffer, size)
    except OSError as error:
        return fail(f"O_DIRECT does not work in {folder} ({kind}): {error.strerror}",
                    "choose a folder on a local ext4 or xfs that the user of the job may write to")
    speeds = {"write_gb_s": round(write / 1e9, 2), "read_gb_s": round(read / 1e9, 2)}
    found = f"O_DIRECT works in {folder} ({kind}): writes {speeds['write_gb_s']} GB/s, reads {speeds['read_gb_s']} GB/s"
    if min(speeds.values()) < 0.5:
        return warn(f"{found}: slow for offloading", "choose a folder on an NVMe disk, or offload to the CPU", **speeds)
    return ok(found, **speeds)


def nccl(context: Context) -> CheckResult:
    devices = context.results["torch.cuda"].data["devices"]  # type: ignore[index]
    ranks = len(devices)
    with TemporaryDirectory(prefix="debzero-doctor-") as folder:
        commands = [interpreter.module("debzero.doctor.child", "nccl", str(rank), str(ranks), f"{folder}/meet")
                    for rank in range(ranks)]
        results = run_side_by_side(commands, [environment() for _ in commands], NCCL_SECONDS)
    errors = {rank: result.error for rank, result in enumerate(results) if result.error}
    if errors:
        first = next(iter(errors))
        rank = next((rank for rank, error in errors.items() if error != ENDED_WITH_ANOTHER), first)
        return fail(f"An all-reduce over {ranks} GPUs fails on GPU {rank}: {errors[rank]}",
                    "run again with NCCL_DEBUG=INFO; if it works with NCCL_P2P_DISABLE=1, the IOMMU or ACS stands "
                    "between the GPUs")
    if ranks == 1:
        return ok("NCCL starts; with one GPU there is nothing to exchange", ranks=1)
    speed = min(result.facts["nccl"]["gigabytes_per_second"] for result in results)
    return ok(f"{ranks} GPUs summed correctly at {speed} GB/s each", ranks=ranks, gigabytes_per_second=speed)


def hub(context: Context) -> CheckResult:
    """Models and data sets come from the hub or its local cache. A host may do without both, so this never fails."""
    try:
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session
    except ImportError as error:
        return warn(f"huggingface_hub does not work: {error}",
                    "give local folders for `model:` and `data.dataset:`, or install it")
    folders = {Path(constants.HF_HUB_CACHE), Path(context.stack.cache, "jobs", "huggingface", "hub")}
    cached: list[str] = []
    for folder in folders:
        with suppress(OSError):
            cached += [path.name.replace("models--", "", 1).replace("--", "/") for path in folder.glob("models--*")]
    data = {"endpoint": constants.ENDPOINT, "cached": sorted(set(cached))}
    models = f"models in the local cache: {', '.join(data['cached']) or 'none'}"
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
    if not reason:
        try:  # through the same proxies as a download
            answer = get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
            reason = f"it answers {answer.status_code}" if answer.status_code >= 400 else ""
        except Exception as error:  # of whichever library the hub's uses
            reason = ": ".join([type(error).__name__, *re.findall(r"\[Errno [^\]]*\] ([\w ]+)", str(error))[-1:]])
    if not reason:
        return ok(f"{constants.ENDPOINT} answers; {models}", **data)
    if cached:
        return ok(f"cannot be reached ({reason}); {models}", **data)
    return warn(f"{constants.ENDPOINT} cannot be reached ({reason}), and no model is in the local cache",
                "set HTTPS_PROXY or HF_ENDPOINT in /etc/default/debzero, or give local folders for `model:` and "
                "`data.dataset:`", **data)


def _job(context: Context) -> dict[str, object]:
    """Two ranks, ZeRO-2, two steps of a BERT of one layer; nothing of it is compiled first."""
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    job: dict[str, object] = {
        "model": {"type": "bert", "vocab_size": 200, **size},
        "data": {"dataset": "rows.csv", "held_out": 0.25, "max_length": 16},
        "train": {"epochs": 1, "max_steps": 2, "global_batch": 8, "learning_rate": 1e-3},
        "zero": {"stage": 2}, "ranks": 2, "output": "out"}
    loading = (context.results["operators"].data or {}).get("load", [])
    if context.on_gpus and "fused_adam" not in loading:
        job["deepspeed"] = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}}
    return job


def step(context: Context) -> CheckResult:
    """A small job through `debzero train`, in a temporary folder; two ranks share a GPU where there is only one."""
    with TemporaryDirectory(prefix="debzero-doctor-") as name:
        folder = Path(name)
        rows = "".join(f"{word} number {number},{kind}\n"
                       for number in range(16) for word, kind in (("cat", "animal"), ("saw", "tool")))
        (folder / "rows.csv").write_text(f"text,label\n{rows}")
        (folder / "job.yml").write_text(json.dumps(_job(context)))  # JSON is YAML
        start = time.monotonic()
        result = run(interpreter.command("train", str(folder / "job.yml")), STEP_SECONDS, HF_HUB_OFFLINE="1",
                     **dict.fromkeys(LIBRARY_FOLDERS, name))
        seconds = round(time.monotonic() - start, 1)
        report = read_json(folder / "out/report.json")
        error = read_json(folder / "out/status.json").get("error")
    if result.error or report.get("steps") != 2:
        return fail(f"Two ranks cannot train: {error or result.error or 'no report was written'}",
                    "start a small job to see all of it: debzero train JOB.yml; what is above this line works, so the "
                    "cause is in the training's libraries or between the ranks (/dev/shm, the loopback interface)")
    shown = {key: report[key] for key in ("world_size", "zero_stage", "precision", "device", "versions")}
    return ok(f"two ranks trained 2 steps with ZeRO stage {report['zero_stage']} in {report['precision']} on "
              f"{report['device']}", seconds=seconds, **shown)


CHECKS = [
    Check("memlock", memlock, needs=("gpu",)),
    Check("nvme", nvme, seconds=2 * SECONDS),
    Check("nccl", nccl, needs=("gpu", "torch.cuda"), slow=True, seconds=NCCL_SECONDS),
    Check("hub", hub, needs=("environment",), slow=True, seconds=HUB_SECONDS),
    Check("step", step, needs=("torch", "deepspeed"), after=("torch.cuda", "operators", "shm", "nccl"), slow=True,
          seconds=STEP_SECONDS),
]
