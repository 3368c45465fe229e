"""The GPUs and their driver, link by link: from the PCI bus to memory errors.

CONTRIBUTING.md lists the steps to add a GPU state. Standard library only: this travels to bare hosts with host.py.
"""
from __future__ import annotations

import re

from debzero.doctor.host_check import CheckResult, HostCheck, Requirements, fail, ok, skip, warn
from debzero.doctor.kernel_log import explain, worst_xid
from debzero.doctor.probe import VERSION, HostProbe
from debzero.doctor.smi import check_nvidia_smi, passes_on, role_helps

OLDEST_DRIVER, NATIVE_DRIVER = "450.80.02", "515.43.04"  # run CUDA 11 at all; was released with CUDA 11.7
ECC_ERRORS = "ecc.errors.uncorrected.volatile.total"
BLACKLIST = "write 'blacklist {0}' to /etc/modprobe.d/{0}.conf, run update-initramfs -u, and reboot"
SIGN = ("have DKMS sign it and enrol that key (mokutil --import, confirm at the next boot), or disable Secure Boot in "
        "the firmware")


def check_gpu(probe: HostProbe, required: Requirements) -> CheckResult:
    """As many GPUs on the PCI bus as the host must have."""
    count = len(probe.gpus or probe.smi_gpus)
    if not count and not required.gpus:
        return skip("no NVIDIA GPU, and none required")
    if count < required.gpus:
        plural = "s" * (required.gpus > 1)
        return fail(f"Expected {required.gpus} NVIDIA GPU{plural}, found {count or 'none'} on the PCI bus",
                    "check the card's seat, power and passthrough, and the firmware's Above 4G Decoding; or lower "
                    "preflight_min_gpus", **probe.gpus)
    away = {address: driver for address, driver in probe.held.items() if passes_on(driver)}
    if away:
        left = count - len(away)
        judge = warn if left >= max(required.gpus, 1) else fail
        return judge(f"{', '.join(sorted(set(away.values())))} keeps {', '.join(away)} for virtual machines, so no job "
                     f"here can use it ({left} of {count} GPUs left)",
                     "to train on it, take it out of vfio-pci.ids in /etc/modprobe.d and on the kernel's command line, "
                     "run update-initramfs -u, and reboot", **probe.gpus)
    shown = ", ".join(f"{gpu['name']} at {address}" for address, gpu in probe.gpus.items())
    return ok(shown or "not on the PCI bus, but nvidia-smi finds it", **probe.gpus)


def check_numa(probe: HostProbe, required: Requirements) -> CheckResult:
    """The firmware says which memory is near which GPU."""
    nodes = len(probe.glob("/sys/devices/system/node/node[0-9]*"))
    unplaced = [address for address, gpu in probe.gpus.items() if gpu["numa"] < 0]
    if nodes > 1 and unplaced:
        return warn(f"The firmware does not say which of the {nodes} NUMA nodes is near {', '.join(unplaced)}",
                    "update the firmware or set its NUMA options: a rank on the far node offloads at about half the "
                    "speed")
    near = ", ".join(f"{name} near {gpu['numa']}" for name, gpu in probe.gpus.items())
    return ok(f"{nodes} nodes: {near}" if nodes > 1 else "one node")


def check_iommu(probe: HostProbe, required: Requirements) -> CheckResult:
    """Nothing stands between two GPUs that talk to each other over PCI."""
    if len(probe.gpus) < 2:
        return ok("only one GPU, so no traffic between GPUs")
    translates = not re.search(r"\biommu=(pt|off)\b", probe.read("/proc/cmdline"))
    if probe.glob("/sys/kernel/iommu_groups/*") and translates:
        return warn("The IOMMU translates the traffic between the GPUs, which slows NCCL or makes it hang",
                    "add iommu=pt to GRUB_CMDLINE_LINUX in /etc/default/grub, run update-grub, and reboot")
    if re.search(r"ACSCtl:.*SrcValid\+", probe.run("lspci", "-vvv")[1]):
        return warn("PCI access control (ACS) sends the traffic between the GPUs through the CPU, which slows NCCL",
                    "disable ACS in the firmware (it does not matter where NVLink joins the GPUs)")
    return ok("the GPUs reach each other directly")


def check_nouveau(probe: HostProbe, required: Requirements) -> CheckResult:
    """No other driver has taken a GPU, or may at the next boot."""
    taken = {address: driver for address, driver in probe.held.items() if not passes_on(driver)}
    if taken:
        drivers = sorted(set(taken.values()))
        return fail(f"{' and '.join(drivers)} holds {', '.join(taken)}, so NVIDIA's driver cannot",
                    "; ".join(BLACKLIST.format(driver) for driver in drivers))
    if probe.nouveau_loaded and not probe.loaded_version:
        return fail("nouveau drives the GPU, so NVIDIA's driver cannot", BLACKLIST.format("nouveau"))
    settings = probe.read_all("/etc/modprobe.d/*.conf", "/usr/lib/modprobe.d/*.conf").values()
    everything = "\n".join(settings) + probe.read("/proc/cmdline")
    if probe.module_on_disk and not re.search(r"blacklist[ =]\S*nouveau", everything):
        return warn("nouveau is not blacklisted, so it may take the GPU at the next boot",
                    BLACKLIST.format("nouveau"))
    return ok("not loaded")


def check_secureboot(probe: HostProbe, required: Requirements) -> CheckResult:
    settings = probe.read_all("/sys/firmware/efi/efivars/SecureBoot-*").values()
    if not any(text[4:5] == "\1" for text in settings):  # four bytes of attributes come first
        return ok("off")
    if probe.loaded_version:
        return ok("on, and the kernel accepted the driver's module")
    module = probe.module_on_disk
    if module and not module["signer"]:
        return fail("Secure Boot is on, and the kernel refuses the driver's module, which is not signed", SIGN)
    why = f"may refuse the driver's module, if it does not know the key of {module['signer']}" if module else (
        "will refuse a driver's module that DKMS builds and nobody signs")
    return warn(f"Secure Boot is on: the kernel {why}", SIGN)


def _image_and_headers(kernel: str) -> str:
    """The packages that bring each new kernel of this flavour and its headers; "" for a kernel that is not Debian's."""
    flavour = re.search(r"-((?:cloud-|rt-)?amd64)$", kernel)
    return f"linux-image-{flavour.group(1)} linux-headers-{flavour.group(1)}" if flavour else ""


def check_headers(probe: HostProbe, required: Requirements) -> CheckResult:
    """The headers of the running kernel, without which DKMS builds no module."""
    package, both = f"linux-headers-{probe.kernel}", _image_and_headers(probe.kernel)
    if probe.in_container:
        return ok("the container's host has its own")
    if probe.path(f"lib/modules/{probe.kernel}/build/Makefile").exists():
        return ok(f"of {probe.kernel}")
    if required.driver_managed:  # `package`: preflight asks apt for it
        missing = {} if probe.loaded_version or probe.module_on_disk else {"package": package}
        return ok("the role nvidia_driver installs them", **missing)
    judge = warn if probe.module_on_disk else fail
    if re.search(r"Candidate: [^(]", probe.run("apt-cache", "policy", package)[1]):
        coming = f" {both.split()[1]}" if both else ""
        return judge(f"{package} is not installed, so DKMS cannot build the driver for the running kernel",
                     f"apt install {package}{coming}, then dkms autoinstall")
    if not both:
        return judge(f"apt has no {package} for the running kernel, which is not Debian's, so DKMS cannot build the "
                     "driver", "install this kernel's headers from where the kernel came from; or apt install "
                     "linux-image-amd64 linux-headers-amd64, and reboot into that")
    return judge(f"apt has no {package} for the running kernel, so DKMS cannot build the driver",
                 f"apt update && apt install {both}, and reboot")


def check_module(probe: HostProbe, required: Requirements) -> CheckResult:
    """The driver's module on disk, for the running kernel and for the next one."""
    kernel, module, loaded = probe.kernel, probe.module_on_disk, probe.loaded_version
    others = [folder.name for folder in probe.glob("/lib/modules/*") if folder.name != kernel]
    if module or (probe.in_container and loaded):
        bare = [name for name in others if probe.path(f"boot/vmlinuz-{name}").exists() and not probe.modules_for(name)]
        if bare:
            return warn(f"The driver is built for the running {kernel}, but not for {bare[-1]}, which may run after a "
                        "reboot", f"apt install linux-headers-{bare[-1]} && dkms autoinstall -k {bare[-1]}")
        return ok(f"{module['version']} for {kernel}" if module else "the container's host has it")
    built = [name for name in others if probe.modules_for(name)]
    registered = probe.glob("/var/lib/dkms/nvidia*/[0-9]*")
    if built or registered:
        state = f"built for {', '.join(built)}" if built else f"registered with DKMS ({registered[-1].name})"
        return fail(f"The driver is {state}, but there is no module for the running kernel {kernel}",
                    f"apt install linux-headers-{kernel} && dkms autoinstall -k {kernel}; if that fails, "
                    "/var/lib/dkms/nvidia*/*/build/make.log says why")
    if loaded:
        return warn(f"Driver {loaded} is running, but its module is not on disk: it will be gone after a reboot",
                    "install the driver again")
    return fail("No NVIDIA driver is installed",
                "set nvidia_driver_manage: true and run site.yml, or apt install nvidia-driver")


def check_versions(probe: HostProbe, required: Requirements) -> CheckResult:
    """One version in the kernel, on disk and in user space."""
    loaded, libraries = probe.loaded_version, ", ".join(probe.library_versions)
    on_disk = probe.module_on_disk.get("version", loaded)
    if not loaded:
        cause = explain(probe)  # a module that can start no GPU at all does not stay
        if cause:
            return fail(f"The driver's module {on_disk} is on disk, but not loaded: {cause.found}", cause.advice)
        return fail(f"The driver's module {on_disk} is on disk, but not loaded", "modprobe nvidia, and read dmesg")
    if on_disk != loaded:
        return fail(f"The loaded module is stale: the kernel runs {loaded}, and {on_disk} is on disk since an upgrade",
                    "reboot; or stop every GPU process, modprobe -r nvidia_uvm nvidia_drm nvidia_modeset nvidia, and "
                    "modprobe nvidia")
    if libraries and loaded not in probe.library_versions:
        return fail(f"The kernel runs driver {loaded}, and its user-space library is {libraries}: they must be equal",
                    f"install libcuda1 and nvidia-smi {loaded}, or the module {libraries} and reboot")
    if not libraries and not probe.smi_gpus:
        return fail(f"The kernel runs driver {loaded}, and its user-space library (libcuda) is not installed",
                    f"apt install libcuda1 nvidia-smi, both {loaded}")
    return ok(f"{loaded} in the kernel and in user space")


def check_driver(probe: HostProbe, required: Requirements) -> CheckResult:
    named = [gpu["driver_version"] for gpu in probe.smi_gpus if VERSION.fullmatch(gpu["driver_version"])]
    version = named[0] if named else probe.loaded_version
    numbers, oldest, native = (list(map(int, re.findall(r"\d+", text)))
                               for text in (version, OLDEST_DRIVER, NATIVE_DRIVER))
    if numbers < oldest:
        return fail(f"Driver {version} is too old for CUDA 11, which needs {OLDEST_DRIVER} or newer",
                    "install a newer one: set nvidia_driver_manage: true and run site.yml")
    how = "natively" if numbers >= native else "by minor-version compatibility: compiled code, no PTX"
    return ok(f"{version} runs CUDA 11 {how}", version=version)


def check_persistence(probe: HostProbe, required: Requirements) -> CheckResult:
    off = ", ".join(gpu["index"] for gpu in probe.smi_gpus if gpu["persistence_mode"] == "Disabled")
    if off:
        return warn(f"Persistence mode is off for GPU {off}, so every start waits for the driver to initialize the GPU",
                    "systemctl enable --now nvidia-persistenced")
    return ok("on")


def check_errors(probe: HostProbe, required: Requirements) -> CheckResult:
    """Memory errors that ECC could not correct, and what the kernel reported."""
    worn = [f"GPU {gpu['index']}: uncorrected memory errors: {gpu[ECC_ERRORS]}"
            for gpu in probe.smi_gpus if re.match("[1-9]", gpu[ECC_ERRORS])]
    xid = worst_xid(probe)
    if worn:
        return warn("; ".join([*worn, *([xid.found] if xid else [])]), "look at nvidia-smi -q -d ECC,PAGE_RETIREMENT, "
                    "and reboot; replace the card if they return")
    if xid:
        return warn(xid.found, xid.advice)
    return ok("none since the start")


GPU_CHECKS = [  # in the order of cause and effect: the first failure is the cause
    HostCheck("gpu", check_gpu),
    HostCheck("numa", check_numa, needs=("gpu",)),
    HostCheck("iommu", check_iommu, needs=("gpu",)),
    HostCheck("nouveau", check_nouveau, needs=("gpu",), fixed_by_role=True),
    HostCheck("secureboot", check_secureboot, needs=("gpu",)),
    HostCheck("headers", check_headers, needs=("gpu",)),
    HostCheck("module", check_module, needs=("gpu", "headers"), fixed_by_role=True),
    HostCheck("versions", check_versions, needs=("module", "nouveau", "secureboot"),
              fixed_by_role=lambda probe: bool(probe.loaded_version) or role_helps(probe)),
    HostCheck("nvidia-smi", check_nvidia_smi, needs=("versions",), fixed_by_role=role_helps),
    HostCheck("driver", check_driver, needs=("nvidia-smi",), fixed_by_role=True),
    HostCheck("persistence", check_persistence, needs=("nvidia-smi",), fixed_by_role=True),
    HostCheck("errors", check_errors, needs=("nvidia-smi",)),
]
