"""A small job that really trains: a BERT of one layer, a csv file of two classes, two ranks over gloo."""
import copy
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import yaml
from warm import server

from debzero.job.schema import Job, Train
from debzero.model import tasks
from debzero.resolve.absorb import Origins
from debzero.resolve.host import HostGpus
from debzero.resolve.identity import Identity
from debzero.resolve.resolve import resolve
from debzero.run import checkpoint
from debzero.train import prepare

SOURCE = Path(__file__).resolve().parents[2] / "src"
# Root reads and writes anywhere by two capabilities: given up, modes count. (Another user might not reach this Python.)
_ROOTS = "-dac_override,-dac_read_search"
POWERLESS = ["setpriv", f"--bounding-set={_ROOTS}", f"--inh-caps={_ROOTS}"] if os.geteuid() == 0 else []
WORDS = {"animal": ["cat", "dog", "horse", "mouse", "sheep"], "tool": ["hammer", "saw", "drill", "file", "wrench"]}
JOB = {
    "model": {"type": "bert", "vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "data": {"dataset": "rows.csv", "held_out": 0.2, "max_length": 16},
    "train": {"epochs": 2, "global_batch": 32, "micro_batch": 8, "learning_rate": 1e-2, "log_every": 1,
              "seed": 101},
    "ranks": 2,
    "output": "out",
}


def rows(count: int = 500) -> str:
    """`text,label` lines; the class shows in one word among fillers, and one class is commoner."""
    dice = random.Random(7)
    lines = ["text,label"]
    for _ in range(count):
        label = dice.choice(["animal", "tool", "tool"])
        words = [dice.choice(WORDS[label]),
                 *dice.choices(["the", "old", "red", "small", "near", "house"], k=dice.randint(2, 9))]
        lines.append(f"{' '.join(dice.sample(words, len(words)))},{label}")
    return "\n".join(lines) + "\n"


def changed(base: dict, changes: dict) -> dict:
    """`base` with the dotted keys of `changes` set; a value of None removes the key."""
    made = copy.deepcopy(base)
    for path, value in changes.items():
        *sections, key = path.split(".")
        section = made
        for name in sections:
            section = section.setdefault(name, {})
        if value is None:
            section.pop(key, None)
        else:
            section[key] = value
    return made


class Bench:
    """A folder with data and job files, and the command to try them with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "rows.csv").write_text(rows())

    def job(self, name: str = "job", **changes: object) -> Path:
        path = self.folder / f"{name}.yml"
        values = changed(JOB, {"output": f"out-{name}",
                               **{key.replace("__", "."): value for key, value in changes.items()}})
        path.write_text(yaml.safe_dump(values))
        return path

    def output(self, name: str = "job") -> Path:
        return self.folder / f"out-{name}"

    def run(self, *arguments: object, module: tuple = ("-m", "debzero"), through: Sequence[str] = (),
            **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run([*through, sys.executable, *module, *map(str, arguments)], cwd=self.folder, text=True,
                              capture_output=True, env={**os.environ, "PYTHONPATH": str(SOURCE), "HF_HUB_OFFLINE": "1",
                                                        **environment}, timeout=600)

    def quick(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
        """As `run`, without the imports: for whatever does not depend on how its processes are launched."""
        return server().run([str(argument) for argument in arguments], self.folder, **environment)

    def quick_apart(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
        """As `quick`, with stdout and stderr apart."""
        return server().run_apart([str(argument) for argument in arguments], self.folder, **environment)

    def train(self, name: str = "job", **changes: object) -> dict:
        """Train to the end; the report."""
        done = self.quick("train", self.job(name, **changes))
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads((self.output(name) / "report.json").read_text())

    def losses(self, name: str) -> list:
        lines = (self.output(name) / "metrics.jsonl").read_text().splitlines()
        return [values["loss"] for values in map(json.loads, lines) if "loss" in values]


def plan_of(bench, **changes):
    """A plan for the bench's rows with changes to its job, by path with dots as two underscores."""
    values = changed(JOB, {"data.dataset": str(bench.folder / "rows.csv"), "output": str(bench.folder / "out"),
                           **{key.replace("__", "."): value for key, value in changes.items()}})
    return resolve(Job.model_validate(values), HostGpus(0, False), 1, "job.yml", None)


def stand_in(name: str = "now") -> SimpleNamespace:
    """As much of a resolved job as opening a folder takes; another name is another training."""
    identity = Identity({"train.seed": name}, {"train.epochs": 3}, {})
    return SimpleNamespace(identity=identity, fingerprint=identity.fingerprint, job=SimpleNamespace(train=Train()),
                           origins=Origins("job.yml"), deepspeed=None)


def prepared(bench, **changes):
    resolved = plan_of(bench, **changes)
    return prepare.load(prepare.prepare(resolved, bench.folder / "cache"), tasks.of(resolved.job))


def newest(root, identity, say):
    """The newest usable checkpoint in `root`: its `tag` and its `record`; None where there is none."""
    records = ((tag, checkpoint.examined(root, tag, identity, say)) for tag in reversed(checkpoint.tags(root)))
    return next((SimpleNamespace(tag=tag, record=record) for tag, record in records if record), None)
