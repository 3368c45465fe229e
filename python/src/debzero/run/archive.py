"""archive/ in an output folder: earlier runs, which can be taken back.

What belongs to a run lies beside what does not, so a run cannot move in one rename. One rename decides all the same:
while its parts are on the way, in either direction, they are in archive/.moving, and what is there is the current
run's. A run is archived from the moment in which .moving gets the name of an archived run, and is the current one again
from the moment in which it gets the name .moving. Whatever a kill leaves there, the next start puts back.
"""
from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Union

from debzero.base.errors import InputError, Problem
from debzero.base.files import new_folder, remove_leftovers, replace

FOLDER = "archive"
MOVING = ".moving"
APPENDED = ("metrics.jsonl", "metrics.csv", "tensorboard")


class Archive:
    """The archived runs of the output folder `output`. Only who holds its lock may change anything."""

    def __init__(self, output: Path) -> None:
        self.output, self.folder = output, output / FOLDER
        self.moving = self.folder / MOVING

    def runs(self) -> list[Path]:
        """The archived runs, oldest first."""
        try:
            return sorted(path for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        except OSError:
            return []

    def place(self, name: str) -> Path:
        """Where a file of the current run is now."""
        usual, moving = self.output / name, self.moving / name
        return moving if not os.path.lexists(usual) and os.path.lexists(moving) else usual

    def add(self, parts: Iterable[Path]) -> Path:
        """Archive the current run, whose parts these are; where it is now."""
        self.moving.mkdir(parents=True)
        try:
            for part in parts:
                self._move(part, self.moving / part.name)
            return self._release()
        except Exception:
            with suppress(OSError):
                self.put_back()
            raise

    def keep(self, parts: Iterable[Path]) -> Path:
        """Archive the current run as it is now, while it goes on; where the copy is. Files are linked, not copied, but
        for those to which a run appends."""
        run = self._new()
        with new_folder(run) as temporary:
            for part in parts:
                copy = shutil.copy2 if part.name in APPENDED else _link
                to = temporary / part.relative_to(self.output)
                to.parent.mkdir(exist_ok=True)
                if part.is_dir() and not part.is_symlink():
                    shutil.copytree(part, to, symlinks=True, copy_function=copy)
                else:
                    copy(part, to, follow_symlinks=False)
        return run

    def take_back(self, run: Path) -> None:
        """Make an archived run the current one, where there is none."""
        self._move(run, self.moving)
        self.put_back()

    def put_back(self) -> None:
        """Put what is on its way back to its place in the output folder. What would replace something there (which
        debzero never leaves so) becomes an archived run of its own."""
        remove_leftovers(self.folder)
        if not self.moving.is_dir() or self.moving.is_symlink():
            return
        for part in sorted(self.moving.iterdir()):
            if not os.path.lexists(self.output / part.name):
                self._move(part, self.output / part.name)
        try:
            self.moving.rmdir()
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            self._release()

    def _release(self) -> Path:
        """Make what is on its way an archived run."""
        run = self._new()
        self._move(self.moving, run)
        return run

    def _new(self) -> Path:
        return self.folder / datetime.now().strftime("%Y-%m-%dT%H%M%S.%f")

    def _move(self, source: Path, target: Path) -> None:
        try:
            replace(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise InputError([Problem(
                str(self.output), "output", f"{source} and {target.parent} are on different file systems, so the run "
                "cannot move there in one step", "let all of the output folder be on one file system")]) from None


def _link(source: Union[str, Path], target: Union[str, Path], follow_symlinks: bool = False) -> None:
    try:
        os.link(source, target, follow_symlinks=follow_symlinks)
    except OSError:  # a file system without links
        shutil.copy2(source, target, follow_symlinks=follow_symlinks)
