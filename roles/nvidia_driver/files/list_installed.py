#!/usr/bin/python3
"""Print as JSON what a host has installed of NVIDIA's, and what this role recorded. Changes nothing.

The only argument is the folder of the role's state. The GPUs themselves are the probe's (debzero/doctor/probe.py).
"""

import json
import re
import subprocess
import sys
from pathlib import Path


def packages() -> dict[str, str]:
    """{package: version} of what is installed and configured."""
    command = ["dpkg-query", "--show", "--showformat", "${db:Status-Abbrev}|${Package}|${Version}\n"]
    listed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    rows = (line.split("|") for line in listed.splitlines())
    return {name: version for status, name, version in rows if status[1] == "i"}


def main() -> None:
    folder = Path(sys.argv[1])
    installed, record = packages(), folder / "version.json"
    print(json.dumps({
        "packages": installed,
        "kernels": sorted(name for name in installed if re.match(r"linux-(image|headers)-", name)),
        "run_file": Path("/usr/bin/nvidia-uninstall").exists(),
        "kept": sorted(path.name for path in folder.glob("packages/*") if not path.name.endswith(".partial")),
        "state": json.loads(record.read_text()) if record.is_file() else {},
        "state_folder": str(folder)}))


if __name__ == "__main__":
    main()
