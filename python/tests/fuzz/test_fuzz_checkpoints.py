"""Damaged, swapped and planted checkpoints: the newest one that is exactly as it was written is used, or none."""
import hashlib
import json
import os
import pickle
import random
import shutil
import socket
from contextlib import closing, suppress
from pathlib import Path

import pytest
from support import Bench, newest

from debzero.base import own_files
from debzero.run import checkpoint
from debzero.run.records import CheckpointRecord, RunIdentity

SETTINGS = {"zero__stage": 2, "train__epochs": 3, "train__log_every": 10, "model__hidden_dropout_prob": 0.1,
            "checkpoint": {"steps": 10, "keep": 3}}
NOBODY = 65534
ROOT = os.geteuid() == 0


class Planted:
    """Does more than it should when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


class Run:
    """A finished run, its checkpoints as they were written, and copies of them to damage."""

    def __init__(self, folder: Path) -> None:
        self.bench = Bench(folder)
        self.bench.train(**SETTINGS)
        self.pristine = self.bench.output() / "checkpoints"
        self.tags = checkpoint.tags(self.pristine)
        self.records = {tag: CheckpointRecord.model_validate_json((self.pristine / tag / checkpoint.FACTS).read_bytes())
                        for tag in self.tags}
        self.identity = RunIdentity(**self.records[self.tags[0]].facts.model_dump())
        self.weights = self.bench.output() / "model" / "model.safetensors"
        self.root = folder / "copies"
        self.root.mkdir()

    def restore(self, tags) -> None:
        """Copies of these checkpoints as they were written, and nothing else but the others."""
        for path in self.root.iterdir():
            if path.name in tags or path.name not in self.tags:
                checkpoint._remove(path)
        for tag in tags:
            shutil.copytree(self.pristine / tag, self.root / tag)

    def found(self) -> tuple:
        """The tag that is used, and what is said of newer ones. What is used is as it was written."""
        said: list = []
        found = newest(self.root, self.identity, said.append)
        if found:
            assert found.record == self.records[found.tag]
            assert contents(self.root / found.tag) == contents(self.pristine / found.tag)
        return found and found.tag, said


def contents(folder: Path) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return Run(tmp_path_factory.mktemp("fuzz"))


def test_every_bit_of_its_facts_counts(run):
    """The newest checkpoint's debzero.json, and the checksum of it."""
    run.restore(run.tags)
    newest = run.root / run.tags[-1]
    files = dict(own_files.walk(newest))
    checkpoint._record(newest, files)
    believed = []
    for name in (checkpoint.FACTS, checkpoint.SUM):
        with open(newest / name, "r+b", buffering=0) as file:
            for place, byte in enumerate(file.read()):
                for bit in range(8):
                    os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), place)
                    with suppress(checkpoint.UnusableError):
                        believed.append((checkpoint._record(newest, files), name, place, bit))
                os.pwrite(file.fileno(), bytes([byte]), place)
    assert not believed
    assert run.found() == (run.tags[-1], [])


def flip(dice, file):
    content = bytearray(file.read_bytes())
    for _ in range(dice.choice([1, 1, 1, 2, 50])):
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    file.write_bytes(content)


def cut(dice, file):
    os.truncate(file, dice.randrange(file.stat().st_size))


def grow(dice, file):
    with open(file, "ab") as end:
        end.write(dice.randbytes(dice.choice([1, 8, 4096])))


def stretch(dice, file):
    """Sparse, so that reading it all would take an hour."""
    os.truncate(file, 2**42)


def blank(dice, file):
    content = bytearray(file.read_bytes())
    start = dice.randrange(len(content))
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    file.write_bytes(content[:-1] + b"\0")


def lose(dice, file):
    file.unlink()


def another(dice, file):
    """A file that DeepSpeed would find by its name, or any."""
    name = dice.choice(["mp_rank_01_model_states.pt", "zero_pp_rank_2_mp_rank_00_optim_states.pt", "debzero.json.bak",
                        "\33[31m\n", os.fsdecode(b"\xff")])
    (file.parent / name).write_bytes(file.read_bytes())


def swap(dice, file):
    other = dice.choice(sorted(path for path in file.parent.iterdir() if path != file))
    content = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(content)


def link(dice, file):
    kept = file.parent.parent / f"elsewhere-{file.parent.name}"
    file.rename(kept)
    file.symlink_to(kept)


def pipe(dice, file):
    file.unlink()
    os.mkfifo(file)


def port(dice, file):
    file.unlink()
    with closing(socket.socket(socket.AF_UNIX)) as made:
        here = os.getcwd()
        os.chdir(file.parent)  # such names may not be long
        made.bind(file.name)
        os.chdir(here)


def device(dice, file):
    file.unlink()
    os.mknod(file, 0o600 | 0o020000, os.makedev(1, 5))  # zeros without end


def folder(dice, file):
    file.unlink()
    (file / "a" / "b").mkdir(parents=True)
    (file / "a" / "b" / "c").write_text("?")


def give(dice, file):
    os.chown(dice.choice([file, file.parent]), NOBODY, -1)


def open_up(dice, file):
    path = dice.choice([file, file.parent])
    path.chmod(path.stat().st_mode | dice.choice([0o20, 0o02]))


def rewrite(dice, file):
    """What no debzero writes, with its checksum."""
    facts = file.parent / checkpoint.FACTS
    values = json.loads(facts.read_bytes())
    where = dice.choice([values, values["state"], values["facts"], values["files"]])
    key = dice.choice([*where, "new"])
    where[key] = dice.choice([True, "\ud800", [[]], {"": []}])
    content = json.dumps(values).encode()
    if dice.random() < 0.1:
        content = b"[" * 100_000
    facts.write_bytes(content)
    (file.parent / checkpoint.SUM).write_bytes(checkpoint._sum_line(content))


def pickled(dice, file):
    """Of the first release: one file of pickle, and its checksum beside the other facts."""
    for path in file.parent.iterdir():
        path.unlink()
    content = pickle.dumps(Planted(file.parent.parent / "ran"))
    (file.parent / "state.pt").write_bytes(content)
    (file.parent / checkpoint.FACTS).write_text(json.dumps({
        "facts": {}, "ranks": 1, "state": {"step": 10},
        "files": {"state.pt": [len(content), hashlib.sha256(content).hexdigest()]}}))


def whole_link(dice, file):
    kept = file.parent.with_name(f"elsewhere-{file.parent.name}")
    file.parent.rename(kept)
    file.parent.symlink_to(kept.name)


def whole_pipe(dice, file):
    shutil.rmtree(file.parent)
    os.mkfifo(file.parent)


def whole_file(dice, file):
    shutil.rmtree(file.parent)
    file.parent.write_text("?")


DAMAGES = [flip, flip, flip, cut, grow, stretch, blank, lose, another, swap, link, pipe, port, folder, open_up, rewrite,
           rewrite, pickled, whole_link, whole_pipe, whole_file, *([device, give] if ROOT else [])]


def test_the_newest_intact_checkpoint_is_used_whatever_happened_to_others(run, request):
    """Each case damages some of the checkpoints; --cases says how many there are."""
    touched = run.tags
    for case in range(request.config.getoption("--cases")):
        dice = random.Random(case)
        run.restore(touched)
        touched = dice.sample(run.tags, dice.choice([1, 1, 2, 3]))
        damages = [dice.choice(DAMAGES) for _ in touched]
        if len(touched) == 2 and dice.random() < 0.1:
            for one, other in ((touched[0], "aside"), (touched[1], touched[0]), ("aside", touched[1])):
                (run.root / one).rename(run.root / other)
        else:
            for tag, damage in zip(touched, damages):
                damage(dice, dice.choice(sorted(path for path in (run.root / tag).rglob("*") if path.is_file())))
        expected = next((tag for tag in reversed(run.tags) if tag not in touched), None)
        found, said = run.found()
        assert found == expected, (case, damages, said)
        newer = [tag for tag in run.tags if expected is None or checkpoint.step(tag) > checkpoint.step(expected)]
        assert [line.split()[2] for line in said] == newer[::-1], (case, damages, said)
        assert all(map(str.isprintable, said)), said


@pytest.mark.parametrize("damages", [[flip], [rewrite, pickled]], ids=["older", "oldest"])
def test_a_damaged_run_ends_in_the_same_weights(run, damages):
    bench, name = run.bench, f"damaged-{len(damages)}"
    job = bench.job(name, **SETTINGS)
    shutil.copytree(bench.output(), bench.output(name), dirs_exist_ok=True)
    status = bench.output(name) / "status.json"
    status.write_text(json.dumps({**json.loads(status.read_text()), "state": "failed"}))
    for tag, damage in zip(run.tags[::-1], damages):
        damage(random.Random(1), bench.output(name) / "checkpoints" / tag / checkpoint.FACTS)
    done = bench.quick("train", job)
    left = run.tags[-1 - len(damages)]
    assert done.returncode == 0 and f"resuming from step {checkpoint.step(left)}\n" in done.stdout, done.stdout
    assert done.stdout.count("is not used") == len(damages)
    assert (bench.output(name) / "model" / "model.safetensors").read_bytes() == run.weights.read_bytes()
    assert (bench.output(name) / "checkpoints" / f"unused-{run.tags[-1]}").is_dir(), "nothing is deleted"
    assert not (bench.output(name) / "checkpoints" / "ran").exists()
