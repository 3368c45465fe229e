#!/usr/bin/env python3
"""Write docs/reference and the job file's JSON Schema, from the schema of a job and the linter's codes.

With --check nothing is written: stale files are named and the exit code is 1.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "python" / "src"))

from debzero.deepspeed_json import reference as codes  # noqa: E402
from debzero.job import reference as job  # noqa: E402


def pages() -> dict[Path, str]:
    """The text of each generated file."""
    schema = job.job_schema()
    return {
        ROOT / "debian" / "job.schema.json": job.as_json(schema),
        ROOT / "docs" / "reference" / "job.md": job.page(schema, (ROOT / "debian" / "jobs" / "mrpc.yml").read_text()),
        ROOT / "docs" / "reference" / "codes.md": codes.page(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only name the files that are stale")
    check = parser.parse_args().check
    texts = pages()
    stale = [page for page, text in texts.items() if not page.is_file() or page.read_text() != text]
    for page in stale:
        if check:
            print(f"{page.relative_to(ROOT)} is stale: run `make docs`", file=sys.stderr)
        else:
            page.parent.mkdir(exist_ok=True)
            page.write_text(texts[page])
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
