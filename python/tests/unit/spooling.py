"""Spool folders for `debzero predict --spool`, and what is put there."""
import os

from debzero.cli import parser
from debzero.predict.watch import Watcher

ROWS = 2500  # three pieces


def watcher(model, spool, *more):
    options = parser().parse_args(["predict", str(model.folder), "--spool", str(spool), *more])
    return Watcher(options, model.folder.absolute())


def settle(watching, times=3):
    """Look until all that is there was seen twice and answered."""
    for _ in range(times):
        watching.look()


def put(spool, name, content):
    """As a newcomer is to do it."""
    (spool / f".{name}").write_bytes(content if isinstance(content, bytes) else content.encode())
    os.rename(spool / f".{name}", spool / "in" / name)


def listed(spool, *folders):
    return {folder: sorted(os.listdir(spool / folder)) for folder in folders or ("in", "out", "failed")}


def rows(count=ROWS, first=0):
    return "".join(f'{{"number": "{number}", "text": "the old cat {number % 50}"}}\n'
                   for number in range(first, first + count))
