#!/usr/bin/python3
"""wheels.py ROOT FOLDER PYTHON...: download the controller's own Ansible, for each Python that it may run on.

The wheels of ROOT's hashed locks go to FOLDER, and what else is there goes. `make controller` installs from it with
DEBZERO_WHEELS=FOLDER.
"""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

LOCKS = ("python/installer.lock", "ansible/requirements.lock")
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64", "linux_x86_64")


def pins(lock: str, python: str) -> list[str]:
    """The pins of a lock for one Python, hashes included and markers gone: pip asks those of the Python it runs on."""
    here = {"python_version": python, "python_full_version": f"{python}.2", "sys_platform": "linux",
            "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64",
            "platform_python_implementation": "CPython", "implementation_name": "cpython"}
    found = []
    for line in re.sub(r" \\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", lock)).splitlines():
        pin, *hashes = (part.strip() for part in line.split("--hash="))
        requirement = Requirement(pin)
        if not requirement.marker or requirement.marker.evaluate(here):
            found.append(" --hash=".join([f"{requirement.name}{requirement.specifier}", *hashes]))
    return found


def main(root: Path, folder: Path, pythons: list[str]) -> None:
    pip = root / ".cache/installer/bin/pip"
    if not pip.is_file():
        sys.exit(f"{pip} is not there, which downloads the controller's wheels: run `make controller` first")
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                   "PIP_CERT": os.environ.get("PIP_CERT", "/etc/ssl/certs/ca-certificates.crt")}
    kept: set[str] = set()
    for python in pythons:
        wanted = folder / f"{python}.txt"
        wanted.write_text("\n".join(line for lock in LOCKS for line in pins((root / lock).read_text(), python)) + "\n")
        command = [pip, "download", "--require-hashes", "--no-deps", "--only-binary=:all:", "--dest", folder,
                   *(f"--platform={platform}" for platform in PLATFORMS), f"--python-version={python}.2",
                   "--requirement", wanted]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        wanted.unlink()
        if done.returncode:
            sys.exit(f"pip cannot download the controller's wheels for Python {python}: {done.stderr.strip()[-1500:]}")
        kept |= {Path(line.split(" ")[-1]).name for line in done.stdout.splitlines()
                 if re.match(r"Saved |\s+File was already downloaded ", line)}
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
