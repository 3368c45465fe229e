"""The middle of the chain: the CUDA compiler, cuDNN, torch, torch.cuda, DeepSpeed and its prebuilt operators."""
from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from debzero.base import interpreter
from debzero.base.operators import RUNTIME, unavailable, wheel
from debzero.doctor.chain import Check, Context
from debzero.doctor.host_check import CheckResult, fail, ok, warn
from debzero.doctor.process import ProcessResult, run

SECONDS = 120  # torch's first import from a cold disk reads a gigabyte
PINNED = f"ignore this if intended; otherwise {RUNTIME}, which installs the pinned versions"
OFFLOADING = ("cpu_adam", "async_io")  # the operators of offload to the host and to NVMe
# What CUDA says when it cannot start, and what helps.
CUDA_ADVICE = {
    "Error 802": "start NVSwitch's manager, of the driver's version: systemctl enable --now nvidia-fabricmanager",
    "Error 803": "reboot: the driver's library and its module are of two versions, or this GPU is unknown to them",
    "Error 804": "remove the package cuda-compat, or install a newer driver",
    "no NVIDIA driver": "apt install libcuda1, of the driver's version: libcuda.so.1 is not found",
    "insufficient": "install a newer driver: set nvidia_driver_manage: true and run `ansible-playbook site.yml`",
    "No CUDA GPUs": "check CUDA_VISIBLE_DEVICES, and that this user may open /dev/nvidia* (group video)",
}


def short(version: str) -> str:
    """Major and minor number alone: what DeepSpeed compares."""
    return ".".join(version.split(".")[:2])


def major(version: str) -> str:
    return version.split(".")[0]


def software(context: Context) -> ProcessResult:
    """What the child process that imports torch reported; it runs once."""
    if "software" not in context.facts:
        found = wheel()
        arguments = [*(found.operators if found else []), *(["--deepspeed"] if found and not context.fast else [])]
        context.facts["software"] = run(interpreter.module("debzero.doctor.child", "software", *arguments), SECONDS,
                                        **({} if context.on_gpus else {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "1"}))
    result: ProcessResult = context.facts["software"]
    return result


def environment(context: Context) -> CheckResult:
    venv, version = Path(context.stack.venv), platform.python_version()
    here = f"Python {version} in {sys.prefix}"
    if importlib.util.find_spec("torch") is None and not (venv / "bin/python").exists():
        return fail(f"{venv} is missing, the Python environment with torch and DeepSpeed",
                    f"apt install debzero-runtime, or {RUNTIME}")
    if short(version) != context.stack.python:
        return warn(f"{here}, but stack.yml pins {context.stack.python}", PINNED)
    return ok(here)


def compiler(context: Context) -> CheckResult:
    """`import deepspeed` runs nvcc on GPU hosts and fails without it, whether or not anything is to be compiled."""
    nvcc, wanted = context.cuda_home / "bin/nvcc", context.stack.cuda
    code, text = context.probe.run(str(nvcc), "--version")
    release = re.search(r"release (\d+\.\d+)", text)
    install = "run `ansible-playbook playbooks/gpu.yml` (role cuda), or set CUDA_HOME to the folder above bin/nvcc"
    if code == 127:
        return fail(f"There is no {nvcc}, and `import deepspeed` fails without it", install)
    if code or not release:
        return fail(f"{nvcc} does not work: {text[:200] or f'exit code {code}'}", install)
    found = f"CUDA {release.group(1)} in {context.cuda_home}"
    if major(release.group(1)) != major(wanted):
        return warn(f"{found}, but stack.yml pins {wanted}: it compiles operators only for a torch with CUDA "
                    f"{major(release.group(1))}", PINNED.replace("runtime", "gpu"), release=release.group(1))
    note = "" if release.group(1) == wanted else f" (stack.yml pins {wanted}; any {major(wanted)}.x will do)"
    return ok(found + note, release=release.group(1))


def torch(context: Context) -> CheckResult:
    if importlib.util.find_spec("torch") is None:
        return fail(f"torch is not installed in {sys.prefix}", RUNTIME)
    result = software(context)
    facts = result.facts.get("torch")
    if facts is None:
        return fail(f"`import torch` fails: {result.error}",
                    f"remove {context.stack.venv} and {RUNTIME}" if "no end" not in result.error else
                    "look for a slow or broken disk, or a driver that hangs (dmesg)")
    facts.update(result.facts.get("libraries", {}))
    pinned = f"{context.stack.torch}+cu{context.stack.cuda.replace('.', '')}"
    found = f"{facts['version']}, built for " + (f"CUDA {facts['cuda']}" if facts["cuda"] else "CPUs only")
    if context.on_gpus and not facts["cuda"]:
        return fail(f"{found}: it cannot use this host's GPUs", RUNTIME, **facts)
    if facts["version"] != pinned:
        return warn(f"{found}; stack.yml pins {pinned}", PINNED, **facts)
    return ok(found, **facts)


def _dotted(number: int) -> str:
    """8500 is cuDNN 8.5.0; from 9 on, 90100 is 9.1.0."""
    step = 10_000 if number >= 90_000 else 1000
    return f"{number // step}.{number % step // 100}.{number % 100}"


def _system_cudnn(context: Context) -> str:
    """By its package; else by its header, beside CUDA's or in the system's own folder."""
    _, listed = context.probe.run("dpkg-query", "--show", "--showformat=${db:Status-Abbrev}${Version}\n",
                                  "libcudnn[0-9]*")
    package = re.search(r"^[ih]i (\d[\d.]*)", listed, re.MULTILINE)
    if package:
        return package.group(1).rstrip(".")
    for folder in (f"{context.cuda_home}/include", "/usr/include", "/usr/include/x86_64-linux-gnu"):
        header = context.probe.read(f"{folder}/cudnn_version.h")
        numbers = re.findall(r"#define CUDNN_(?:MAJOR|MINOR|PATCHLEVEL) (\d+)", header)
        if len(numbers) == 3:
            return ".".join(numbers)
    return ""


def cudnn(context: Context) -> CheckResult:
    """Two libraries for two users, not to be compared: the system's is for other programs than torch."""
    system, pinned = _system_cudnn(context), context.stack.cudnn
    bundled = software(context).facts.get("libraries", {}).get("cudnn")
    data = {"system": system or None, "torch": _dotted(bundled) if bundled else None}
    found = f"the system's: {system or 'none'}; torch's own: {data['torch'] or 'none'}"
    if not pinned.startswith(system or "-"):
        return warn(f"{found}; stack.yml pins {pinned} for the system", "nothing for training, which uses torch's own; "
                    "for other programs run `ansible-playbook playbooks/gpu.yml` (role cuda)", **data)
    return ok(found, **data)


def runs_on(capability: str, architectures: Iterable[str]) -> bool:
    """Whether a GPU runs code for one of these: machine code (sm_80) of its generation and not newer than it, or older
    PTX (compute_80).
    """
    def number(text: str) -> int:
        return int(text.replace(".", ""))

    own = number(capability)
    for kind, digits, special in re.findall(r"(sm|compute)_(\d+)([a-z]?)", " ".join(architectures)):
        code = int(digits)
        if (code == own if special else code <= own and (kind == "compute" or code // 10 == own // 10)):
            return True
    return False


def cuda(context: Context) -> CheckResult:
    result = software(context)
    facts = result.facts.get("cuda", {"error": result.error})
    if "error" in facts:
        advice = next((text for words, text in CUDA_ADVICE.items() if words in facts["error"]),
                      "run nvidia-smi and read dmesg; a reboot clears most states of the driver")
        return fail(f"torch cannot start CUDA: {facts['error'].split('. ')[0]}", advice)
    devices: list[dict[str, Any]] = facts["devices"]
    found = ", ".join(f"{number}: {d['name']} ({d['capability']}, {d['memory_mb']} MiB)"
                      for number, d in enumerate(devices))
    strange = sorted({f"{d['name']} (compute capability {d['capability']})" for d in devices
                      if not runs_on(d["capability"], facts["architectures"])})
    version = result.facts["torch"]["version"]
    if strange:
        return fail(f"torch {version} holds no code for {', '.join(strange)}, only for "
                    f"{' '.join(facts['architectures'])}", "use a torch that was built for this GPU, or another GPU",
                    **facts)
    count = len(context.probe.smi_gpus)
    if len(devices) != count:
        differ = f"torch sees {len(devices)} GPUs and nvidia-smi {count}: {found}"
        if "CUDA_VISIBLE_DEVICES" in os.environ:
            return warn(differ, "unset CUDA_VISIBLE_DEVICES if all are to be used", **facts)
        return fail(differ, "check that this user may open every /dev/nvidia* (group video, DeviceAllow= of the unit)",
                    **facts)
    return ok(found, **facts)


def processor(context: Context) -> CheckResult:
    """The prebuilt operators that run on the processor are compiled for Haswell (2013), which brought AVX2 and FMA."""
    flags = re.search(r"^flags\s*:(.*)$", context.probe.read("/proc/cpuinfo"), re.MULTILINE)
    lacking = [name.upper() for name in ("avx2", "fma") if flags and name not in flags.group(1).split()]
    found = wheel()
    if lacking and found and found.operators:
        return fail(f"The processor lacks {' and '.join(lacking)}, for which DeepSpeed's operators are compiled",
                    "use a processor of 2013 or later; in a virtual machine choose the CPU model `host`")
    return ok("has AVX2 and FMA" if flags and not lacking else "nothing is compiled for it beforehand")


def deepspeed(context: Context) -> CheckResult:
    found = wheel()
    if found is None:
        return fail(f"DeepSpeed is not installed in {sys.prefix}", RUNTIME)
    result, pinned = software(context), context.stack.deepspeed
    facts = result.facts["torch"]
    data = found._asdict()
    if not context.fast and "deepspeed" not in result.facts:
        return fail(f"`import deepspeed` fails: {result.error or 'it ended this process'}",
                    f"read the error; {RUNTIME}, which installs what fits together", **data)
    if found.operators and context.on_gpus and found.accelerator != "cuda":
        return fail(f"The wheel is built for the accelerator {found.accelerator!r}: on GPUs DeepSpeed ignores all its "
                    "operators", f"set deepspeed_wheel_accelerator: cuda and {RUNTIME}", **data)
    built, here = (found.torch, found.cuda), (short(facts["version"]), facts["cuda"] or "0.0")
    if found.operators and (built[0] != here[0] or (context.on_gpus and built[1] != here[1])):
        return fail(f"The wheel is built for torch {built[0]} with CUDA {built[1]}, and torch here is {here[0]} with "
                    f"CUDA {here[1]}: DeepSpeed refuses its operators", RUNTIME, **data)
    if found.version != pinned:
        return warn(f"{found.version}; stack.yml pins {pinned}", PINNED, **data)
    return ok(found.version + (f", built for torch {built[0]} with CUDA {built[1]}" if found.operators else ""), **data)


def operators(context: Context) -> CheckResult:
    """Each prebuilt operator is loaded in a process of its own. Some need libcuda, which comes with a GPU's driver."""
    found = wheel()
    installed = found.operators if found else []
    result = software(context)
    reports = {name: result.facts.get(f"operator {name}", {"error": result.error}) for name in installed}
    errors = {name: report.get("error", "") for name, report in reports.items()}
    need_driver = [name for name, error in errors.items() if "libcuda.so" in error and not context.on_gpus]
    broken = {name: error for name, error in errors.items() if error and name not in need_driver}
    missing = [name for name in context.stack.deepspeed_ops if name not in installed] if context.on_gpus else []
    data = {"load": [name for name, error in errors.items() if not error], "need_libcuda": need_driver,
            "broken": broken, "missing": missing}
    if broken:
        why = "the wheel does not fit what is installed here: "
        if any("SIGILL" in error for error in broken.values()):
            why = "it holds instructions that this processor lacks: remove the wheel from the controller's store and "
        found_broken = "; ".join(f"{name} does not load: {error}" for name, error in broken.items())
        return fail(found_broken, why + RUNTIME, **data)
    words = [f"{len(data['load'])} load ({', '.join(data['load'])})"] if data["load"] else ["none is prebuilt"]
    words += [f"{', '.join(need_driver)} would need libcuda, which comes with a GPU's driver"] if need_driver else []
    unbuildable = [why for why in (unavailable(name, context.on_gpus, result.facts["torch"]["version"])
                                   for name in OFFLOADING) if why]
    if unbuildable:
        return warn("; ".join([*words, *unbuildable]),
                    f"to offload, {RUNTIME}: its wheel holds them; other jobs do not need them", **data)
    if missing or not installed:
        compiled = "DeepSpeed compiles them when a job first needs them"
        if missing and installed:
            compiled = f"{', '.join(missing)} missing: compiled when a job first needs them"
        return warn("; ".join([*words, compiled]), "nothing, if a compiler is here and the minutes do not matter "
                    f"(g++, ninja{', nvcc' if context.on_gpus else ''}); else {RUNTIME}", **data)
    return ok("; ".join(words), **data)


CHECKS = [
    Check("environment", environment),
    Check("compiler", compiler, needs=("gpu",)),
    Check("torch", torch, needs=("environment",), seconds=SECONDS),
    Check("cudnn", cudnn, needs=("gpu", "torch")),
    Check("torch.cuda", cuda, needs=("gpu", "torch", "nvidia-smi", "driver")),
    Check("processor", processor),
    Check("deepspeed", deepspeed, needs=("torch",), after=("compiler",)),
    Check("operators", operators, needs=("deepspeed",), after=("processor",)),
]
