"""`debzero release`: a verified export becomes the model that the service `debzero-predict@NAME` answers with.

Each release is a folder of its own, which is complete before the link `current` leads to it. An export may be another
user's: root opens its files as that user, follows no link, and checks on its own copy what the export's record says.
"""
from __future__ import annotations

import json
import os
import re
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from debzero.base import privileges
from debzero.base.errors import InputError, Problem, UserError
from debzero.base.files import created, replace, sha256, temporary_name
from debzero.base.reading import open_regular, why
from debzero.base.stack import models_folder
from debzero.base.text import bytes_text, printable
from debzero.predict import exported
from debzero.run.records import read_record
from debzero.run.status import check_readable, locate

CURRENT = "current"
LARGEST = 2**35        # bytes of an export
BLOCK = 2**22          # bytes
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)  # of an instance of the unit, too


def release(options: Namespace) -> int:
    """The exit code."""
    place = (options.to or models_folder()).absolute() / _checked(options.name)
    if not place.parent.is_dir():
        raise InputError([Problem("the command line", "--to", f"{place.parent} is not there",
                                  "install the package, which makes it, or name a folder")])
    privileges.require_own(place.parent)
    os.umask(privileges.UMASK)  # with root's own 077 the service's group could not read it
    folder = _export(options)
    with _opened(folder) as (record, files):
        if options.precision not in ("auto", record.precision):
            raise InputError([Problem("the command line", "--precision", f"{folder} is an export in "
                                      f"{record.precision}", "leave it out, or name another export")])
        final = place / sha256(files[exported.RECORD])[:16]
        files[exported.RECORD].seek(0)
        if not final.is_dir():
            with exported.new_export(final, "--to") as made:
                _copy(folder, record, files, made)
    changed = _point(place / CURRENT, final.name)
    if options.json:
        print(json.dumps({"folder": str(final), "changed": changed}))
    else:
        print(printable(f"{'released' if changed else 'current already'}: {final}"))
    return 0


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise InputError([Problem("the command line", "NAME", f"{name!r} cannot be the name of a service",
                                  "use letters, digits and . _ -; name the export with --from")])
    return name


def _export(options: Namespace) -> Path:
    """The folder of the export."""
    if options.folder is not None:
        return Path(options.folder).absolute()
    run = locate(options.name)
    with privileges.acting_as_owner(run.folder):
        check_readable(run, options.name)
        model = run.archive.place(run.model.name).absolute()
        folder = exported.place(model, "onnx", options.precision)
        if (folder / exported.RECORD).is_file():
            exported.check_step(folder, model)
        return folder


@contextmanager
def _opened(folder: Path) -> Iterator[tuple[exported.Exported, dict[str, BinaryIO]]]:
    """The export's record, and its files, open. Raises an InputError where it is none."""
    with ExitStack() as stack:
        with privileges.acting_as_owner(folder):
            record = read_record(folder / exported.RECORD, exported.Exported)
            if record is None or record.to != "onnx":
                raise InputError([Problem(str(folder), "export", f"it is no export to ONNX: {exported.RECORD} is "
                                          "missing, or says something else",
                                          "make one: debzero export NAME --to onnx")])
            try:
                files = {name: stack.enter_context(open_regular(folder / name, own=True))
                         for name in sorted(os.listdir(folder)) if not name.startswith(".")}
            except OSError as error:
                raise InputError([Problem(str(folder), "export", f"{error.filename} {why(error)}",
                                          "export the model again")]) from None
        yield record, files


def _copy(folder: Path, record: exported.Exported, files: dict[str, BinaryIO], made: Path) -> None:
    """Raises a UserError for what is not what was verified."""
    left = LARGEST
    for name, source in files.items():
        with created(made / name) as file:
            while block := source.read(BLOCK):
                left -= len(block)
                if left < 0:
                    raise UserError(f"{folder} has more than {bytes_text(LARGEST)}", "is it an export?")
                file.write(block)
    exported.check_files(made, record, folder)


def _point(link: Path, target: str) -> bool:
    """Let `link` lead to `target` beside it, without a moment in which it leads nowhere; whether that is new."""
    if link.is_symlink() and os.readlink(link) == target:
        return False
    temporary = temporary_name(link)
    os.symlink(target, temporary)
    replace(temporary, link)
    return True
