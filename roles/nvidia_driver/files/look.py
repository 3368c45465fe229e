#!/usr/bin/python3
"""Print as JSON what a host has of NVIDIA's: devices, the loaded module, packages, what nvidia-smi says. Changes nothing.

The only argument is the folder of the role's state.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

SYS = Path("/sys")
DISPLAY, BRIDGE = "0x03", "0x0680"  # PCI classes: display controllers, and what NVSwitches call themselves


def read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def run(*command: str) -> tuple[int, str]:
    """Exit code and all output; 127 for what is not installed, and 124 for what hangs, as a broken GPU lets nvidia-smi."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    except OSError as error:
        return 127, str(error)
    except subprocess.TimeoutExpired:
        return 124, f"{command[0]} did not answer within two minutes"
    return done.returncode, done.stdout.strip()


def devices(kind: str) -> list[str]:
    """PCI addresses of NVIDIA's devices whose class begins so."""
    folders = sorted((SYS / "bus/pci/devices").glob("*"))
    return [path.name for path in folders if read(path / "vendor") == "0x10de" and read(path / "class").startswith(kind)]


def packages() -> dict[str, str]:
    """{package: version} of what is installed and configured."""
    listed = run("dpkg-query", "--show", "--showformat", "${db:Status-Abbrev}|${Package}|${Version}\n")[1]
    rows = (line.split("|") for line in listed.splitlines())
    return {name: version for status, name, version in rows if status[1] == "i"}


def main() -> None:
    state = Path(sys.argv[1])
    code, output = run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    installed = packages()
    facts: dict[str, Any] = {
        "gpus": devices(DISPLAY),
        "switches": devices(BRIDGE),
        "works": code == 0 and bool(re.fullmatch(r"([\d.]+\n?)+", output)),
        "smi": output,
        "running": output.split("\n")[0] if code == 0 else "",
        "loaded": read(SYS / "module/nvidia/version"),
        "nouveau": (SYS / "module/nouveau").exists(),
        "installer": Path("/usr/bin/nvidia-uninstall").exists(),
        "packages": installed,
        "kernels": sorted(name for name in installed if re.match(r"linux-(image|headers)-", name)),
        "kept": sorted(path.name for path in (state / "packages").glob("*") if not path.name.endswith(".partial")),
        "state": json.loads(read(state / "version.json") or "{}"),
        "boot": read(Path("/proc/sys/kernel/random/boot_id")),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
