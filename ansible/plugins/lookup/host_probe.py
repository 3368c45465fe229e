"""`lookup('host_probe')`: the path of an archive that a bare host's python3 runs.

It holds debzero.doctor, with what it needs, and runs host.py, which documents the arguments. Each look-up builds a new
one.
The tests run this file by itself: `host_probe.py ARCHIVE` writes the archive.
"""
from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

SOURCE = Path(__file__).resolve().parents[3] / "python/src"
OTHERS = ("debzero/base/__init__.py", "debzero/base/text.py")  # what debzero.doctor's files for the bare host import
MAIN = "import sys\nfrom debzero.doctor.host import main\nsys.exit(main())\n"


def write_archive(path: Path) -> Path:
    """Write the archive to `path`. debzero's own __init__ stays behind: it looks for files that are not in there."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__main__.py", MAIN)
        archive.writestr("debzero/__init__.py", "")
        for module in [*sorted(SOURCE.glob("debzero/doctor/*.py")), *(SOURCE / name for name in OTHERS)]:
            archive.write(module, str(module.relative_to(SOURCE)))
    return path


if __name__ == "__main__":
    write_archive(Path(sys.argv[1]))
else:
    from ansible import constants
    from ansible.plugins.lookup import LookupBase

    class LookupModule(LookupBase):
        def run(self, terms: list[str], variables: Any = None, **options: Any) -> list[str]:
            # Ansible removes this folder when the play ends.
            return [str(write_archive(Path(mkdtemp(dir=constants.DEFAULT_LOCAL_TMP), "host_probe.pyz")))]
