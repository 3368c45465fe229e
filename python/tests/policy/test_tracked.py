"""What is tracked belongs to the project: nothing that is ignored, and no path of the machine that wrote it."""
from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from checkout import ROOT, hits, names, refuse

# The folders at the top of every Linux; any other one, such as a disk that holds checkouts, belongs to one machine.
STANDARD = {"bin", "boot", "dev", "etc", "home", "lib", "lib64", "media", "mnt", "opt", "proc", "root", "run", "sbin",
            "srv", "sys", "tmp", "usr", "var"}
HOME = r"/(?:home|Users)/\w[\w.-]*/\w|/root/\w"
INVENTED = {"/home/" "kim/s": "a test proves that a model card does not publish it"}


def git(*words: str) -> list[str]:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()


def foreign(checkouts: Iterable[Path]) -> str:
    """A pattern for paths in somebody's home folder, in one of these checkouts, or beside one on a disk of its own."""
    tops = [Path(*path.parts[:2]) if path.parts[1] not in STANDARD else path for path in checkouts]
    own = "".join(rf"|{re.escape(str(top))}(?:/|$|(?=[\s\"':,]))" for top in tops if len(top.parts) > 1)
    # What stands before it must not make it the middle of another path, of a URL or of a pattern.
    return rf"(?<![\w.*}}/$)~>\]%-])(?:{HOME}{own})"


def checkouts() -> set[Path]:
    """This checkout, and the one that it is a worktree of."""
    return {ROOT, Path(*git("rev-parse", "--path-format=absolute", "--git-common-dir")).parent}


def texts() -> dict[str, str]:
    return {name: (ROOT / name).read_text(errors="replace") for name in names()}


def test_nothing_tracked_is_ignored():
    ignored = git("ls-files", "--cached", "--ignored", "--exclude-standard")
    refuse(f"{name} is tracked, though .gitignore names it: git rm --cached {name}" for name in ignored)


def test_no_file_names_a_path_of_the_machine_that_wrote_it():
    refuse(hit for hit in hits(foreign(checkouts()), texts()) if hit.partition(": ")[2] not in INVENTED)


def test_no_exception_outlives_its_reason():
    found = {hit.partition(": ")[2] for hit in hits(foreign([]), texts())}
    assert set(INVENTED) - found == set()


def test_the_checks_see_what_is_wrong():
    pattern = foreign([Path("/srv/kit"), Path("/disk/kit")])
    bad = ["/home/" "lea/x", "see /root/" "kit", "/Users/" "lea/x", "'/srv/kit/python'", "# file: /srv/kit",
           "/disk/other/x"]
    good = ["/home/", "https://example.org/home/" "lea/x", "~/kit", "$HOME/root/" "x", "/root/.ssh/authorized_keys",
            "/srv/kitchen", "/srv/x", "train/disk/x", "/diskette/x"]
    assert [text for text in bad if not hits(pattern, {"x": text})] == []
    assert [text for text in good if hits(pattern, {"x": text})] == []
