#!/usr/bin/env python3
"""Can apt really fetch what will be installed? Mirrors list files that they no longer have.

Takes JSON, {"packages": [...], "non_free": [...], "url": an archive or "", "components": "main"}, and prints for both
lists [name, reason] of each package and file that cannot be fetched. `non_free` are packages whose roles add contrib
and non-free later. Nothing is installed, and neither apt's lists nor its caches are written: lists older than an hour
are fetched to a folder that is removed again. A HEAD request to each file is the quick answer, apt's own download the
final one.
"""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FRESH_SECONDS = 3600
MOST_DOWNLOADS = 3  # of files that did not answer to HEAD: the first ones tell enough
QUIET = ["-qq", "-oDir::Cache::pkgcache=", "-oDir::Cache::srcpkgcache=", "-oAPT::Sandbox::User=root",
         "-oDebug::NoLocking=1",
         "-oAcquire::Retries=2", "-oAcquire::http::Timeout=20", "-oAcquire::https::Timeout=20"]


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                          env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"})


def complaint(text: str) -> str:
    lines = re.findall(r"^E: (.*)", text, re.MULTILINE) or text.splitlines() or ["apt says nothing"]
    return lines[0].strip()


def non_free_lines(options: list[str]) -> str:
    """contrib and non-free of each of Debian's archives that apt takes main from, as lines of sources.list."""
    fields = "|".join(f"$({name})" for name in ("REPO_URI", "RELEASE", "COMPONENT", "ORIGIN", "SIGNED_BY"))
    targets = run("apt-get", *QUIET, *options, "indextargets", "--format", fields,
                  "Created-By: Packages").stdout.splitlines()
    rows = [line.split("|") for line in targets if line.count("|") == 4]
    return "".join(f"deb {f'[signed-by={key}] ' if key.startswith('/') else ''}{url} {release} contrib non-free\n"
                   for url, release, component, origin, key in rows if component == "main" and origin == "Debian")


def private_lists(folder: Path, url: str, components: str, non_free: bool) -> list[str]:
    """Options that make apt use lists of its own, of `url` or of the archives that the host is configured with."""
    (folder / "lists/partial").mkdir(parents=True)
    configured, mine = Path("/etc/apt/sources.list"), folder / "sources.list"
    options = [f"-oDir::State::lists={folder}/lists", f"-oDir::Cache::pkgcache={folder}/pkgcache.bin",
               "-oAcquire::Languages=none",
               f"-oDir::Etc::sourcelist={mine}", *(["-oDir::Etc::sourceparts=-"] if url else [])]
    given = f"deb {url} bullseye {components}\n" if url else ""
    mine.write_text(given or (configured.read_text() if configured.is_file() else ""))
    run("apt-get", *QUIET, *options, "update")
    more = non_free_lines(options) if non_free else ""
    if more:
        mine.write_text(f"{mine.read_text()}\n{more}")
        run("apt-get", *QUIET, *options, "update")
    return options


def uris(packages: list[str], options: list[str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """{file: its address} of all that installing the packages would fetch, and what apt cannot even find."""
    unknown: list[tuple[str, str]] = []
    while packages:
        asked = run("apt-get", *QUIET, *options, "install", "--yes", "--no-install-recommends", "--print-uris",
                    *packages)
        if not asked.returncode:
            return {file: uri for uri, file in re.findall(r"^'([^']+)' (\S+) ", asked.stdout, re.MULTILINE)}, unknown
        names = re.findall(r"^E: (?:Unable to locate package|Package) '?([^\s']+)", asked.stdout, re.MULTILINE)
        missing = set(names) & set(packages)
        if not missing:
            return {}, [*unknown, (" ".join(packages), complaint(asked.stdout))]
        unknown += [(name, "apt knows no such package") for name in sorted(missing)]
        packages = [name for name in packages if name not in missing]
    return {}, unknown


def answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(uri, method="HEAD"), timeout=20):
            return True
    except (OSError, ValueError):
        return False


def unfetchable(files: dict[str, str]) -> list[tuple[str, str]]:
    for protocol, proxy in re.findall(r'^Acquire::(https?)::Proxy "([^"]+)";', run("apt-config", "dump").stdout,
                                      re.MULTILINE):
        os.environ[f"{protocol}_proxy"] = proxy
    with ThreadPoolExecutor(16) as pool:
        silent = [file for file, there in zip(files, pool.map(answers, files.values())) if not there]
    lost: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for file in silent[:MOST_DOWNLOADS]:
            tried = run("/usr/lib/apt/apt-helper", *QUIET, "download-file", files[file], f"{folder}/{file}")
            if tried.returncode:
                lost.append((file, re.sub(r"Failed to fetch | \[IP.*", "", complaint(tried.stdout))))
    if not lost:
        return []
    more = len(silent) - 1 if len(lost) == MOST_DOWNLOADS else len(lost) - 1
    return [(lost[0][0] + f" and {more} more files" * (more > 0), lost[0][1])]


def main(packages: list[str], non_free: list[str], url: str, components: str) -> dict[str, list[tuple[str, str]]]:
    groups = {"packages": packages, "non_free": non_free}
    wanted = {group: uris(names, []) for group, names in groups.items()}
    if not any(files or unknown for files, unknown in wanted.values()):
        return {group: [] for group in groups}  # all are installed, or in apt's cache
    ages = [time.time() - path.stat().st_mtime for path in Path("/var/lib/apt/lists").glob("*Packages*")]
    with tempfile.TemporaryDirectory() as folder:
        if url or not ages or min(ages) > FRESH_SECONDS or wanted["non_free"][1]:
            os.chmod(folder, 0o755)
            options = private_lists(Path(folder), url, components, bool(non_free))
            wanted = {group: uris(names, options) for group, names in groups.items()}
        return {group: unknown + unfetchable(files) for group, (files, unknown) in wanted.items()}


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
