"""The data set `debian-sections`: one-line package descriptions and the archive section that each package is filed in.

It is built from this host's own apt lists, so it needs no download beyond `apt-get update`. The same packages give the
same samples and the same split: everything is chosen by hashes of names, nothing by position or chance.
"""
from __future__ import annotations

import hashlib
import io
import subprocess
from collections import Counter
from pathlib import Path
from typing import IO, NamedTuple

from debzero.base.errors import UserError

SECTIONS = 12       # the largest; each has at least a thousand packages
PER_SECTION = 1000  # keeps the classes balanced and the demo inside its minutes
FEWEST = 2000       # a release has tens of thousands of packages; without lists only the installed ones are known
# Filed by state or purpose of the package, which its description does not tell.
NOT_TOPICS = {"oldlibs", "debug", "metapackages", "misc", "tasks", "localization", "introspection", "otherosfs"}


class Sample(NamedTuple):
    text: str
    label: str
    held_out: bool


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def dump() -> bytes:
    """apt's own view of every package it knows, in deb822 form."""
    try:
        done = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=True,
                              env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"})
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"the data set debian-sections needs apt-cache, which failed: {error}",
                        "use a Debian host, or another `data.dataset:`") from None
    return done.stdout


def samples(packages: IO[bytes], held_out: float = 0.1) -> list[Sample]:
    """Texts and labels from apt's dump, deduplicated, balanced and split (sources stay whole), in a fixed order."""
    from debian.deb822 import Deb822

    fields = ["Package", "Source", "Section", "Description", "Description-en"]
    found: dict[str, tuple[str, str, str]] = {}
    for entry in Deb822.iter_paragraphs(packages, fields=fields, use_apt_pkg=False):
        description = (entry.get("Description") or entry.get("Description-en") or "").split("\n")[0].strip()
        section = entry.get("Section", "").split("/")[-1]
        if description and section and section not in NOT_TOPICS:
            source = entry.get("Source", entry["Package"]).split(" ")[0]
            found[entry["Package"]] = (description, section, source)
    if len(found) < FEWEST:
        raise UserError(f"apt knows only {len(found)} packages here, too few for the data set debian-sections: its "
                        "package lists are missing", "run `apt-get update` as root, then start the job again")

    # Siblings often share one description: the first by name keeps it, so no held-out text was trained on.
    first: dict[str, str] = {}
    for package in sorted(found):
        first.setdefault(found[package][0].lower(), package)
    largest = [s for s, _ in sorted(Counter(found[p][1] for p in first.values()).items(), key=lambda i: (-i[1], i[0]))]
    chosen: list[Sample] = []
    for section in sorted(largest[:SECTIONS]):
        members = sorted((p for p in first.values() if found[p][1] == section), key=_hash)[:PER_SECTION]
        for package in members:
            description, label, source = found[package]
            chosen.append(Sample(description, label, _hash("split " + source) / 2**64 < held_out))
    return chosen


def build(cache: Path, held_out: float) -> Path:
    """The data set as a parquet file in `cache`, named by what it was made from; made at most once."""
    import pandas

    packages = dump()
    digest = hashlib.sha256(packages + f"{SECTIONS} {PER_SECTION} {held_out}".encode()).hexdigest()[:16]
    path = cache / f"debian-sections-{digest}.parquet"
    if not path.is_file():
        frame = pandas.DataFrame(samples(io.BytesIO(packages), held_out))
        cache.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)
    return path
