"""What comes from a hub: rows and weights at one commit, and never programs, pickles or files of this host."""
import json
import os
import subprocess
import sys

import pytest
from fake_hub import COMMIT, serving
from support import SOURCE, rows

OTHER = "f" * 40
SCRIPT = """
import json, sys
from debzero.base.failures import as_user_error
from debzero.data import hub
from debzero.job.schema import Job
from debzero.model import source

def outcome(kind, name, revision):
    try:
        if kind == "data":
            splits = hub.read(name, revision)
            return [splits["train"].column_names, hub.commit_of(splits["train"])]
        job = {"model": name, "revision": revision, "data": {"dataset": "a.csv"}, "output": "o"}
        return source.revisions(source.local(Job.model_validate(job)))["model"]
    except Exception as error:
        return str(as_user_error(error, "."))

print(json.dumps([outcome(*asked) for asked in json.loads(sys.argv[1])]))
"""
ONLINE = {
    ("data", "me/rows", "main"): [["text", "label"], COMMIT],
    ("data", "me/rows", "v1.0"): [["text", "label"], COMMIT],
    ("data", "me/rows", "nope"): "has no revision 'nope'",
    ("data", "me/nowhere", "main"): "was not found on the hub",
    ("data", "me/elsewhere", "main"): "secret.csv as its data, which is not on the hub",
    ("data", "me/program", "main"): "is a program (program.py), which debzero never runs",
    ("data", "me/program", "v1.0"): "is a program (program.py), which debzero never runs",
    ("data", "pandas", "main"): "is a format, not a data set",
    ("data", "me/..", "main"): "nor a name that the hub can have",
    ("model", "me/safe", "v1.0"): COMMIT,
    ("model", "me/pickle", "main"): "has its weights as pytorch_model.bin alone",
    ("model", "me/safe", "nope"): "has no revision 'nope'",
    ("model", "me/nowhere", "main"): "was not found on the hub",
}
OFFLINE = {
    ("data", "me/rows", "main"): [["text", "label"], COMMIT],
    ("data", "me/rows", COMMIT): [["text", "label"], COMMIT],
    ("data", "me/rows", OTHER): f"came from the cache at commit {COMMIT}, not {OTHER}",
    ("data", "me/rows", "v1.0"): "is only known online",
    ("data", "me/nowhere", "main"): "hub cannot be reached",
    ("model", "me/safe", "v1.0"): COMMIT,
    ("model", "me/safe", "main"): "the hub's cache has no model me/safe at revision 'main'",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Of everything above, in a current folder that has folders of these names."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "secret.csv").write_text(rows())
    for name in ("me/rows", "me/safe"):
        (folder / "current" / name).mkdir(parents=True)
        (folder / "current" / name / "train.csv").write_text("not,these\n1,2\n")
        (folder / "current" / name / "config.json").write_text("{}")
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    bert = {"config.json": b'{"model_type": "bert"}'}
    files = {"train.csv": rows().encode(), "validation.csv": rows().encode()}
    elsewhere = f"---\nconfigs:\n- config_name: default\n  data_files: {folder}/secret.csv\n---\n".encode()
    repositories = {
        "datasets/me/rows": files, "datasets/me/elsewhere": {**files, "README.md": elsewhere},
        "datasets/me/program": {"program.py": f"open('{folder}/ran', 'w')".encode()},
        "models/me/pickle": {**bert, "pytorch_model.bin": b"x"},
        "models/me/safe": {**bert, "model.safetensors": len(header).to_bytes(8, "little") + header}}
    found = {}
    with serving(repositories) as address:
        for offline, asked in enumerate((ONLINE, OFFLINE)):
            environment = {**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": str(offline),
                           "HF_DATASETS_OFFLINE": str(offline), "HF_ENDPOINT": address, "NO_PROXY": "127.0.0.1",
                           "PYTHONPATH": str(SOURCE)}
            for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "TRANSFORMERS_CACHE"):
                environment.pop(name, None)
            done = subprocess.run([sys.executable, "-c", SCRIPT, json.dumps([*asked])], text=True, env=environment,
                                  stdout=subprocess.PIPE, cwd=folder / "current", timeout=120, check=True)
            found.update({(offline, *key): value for key, value in zip(asked, json.loads(done.stdout))})
    assert not (folder / "ran").exists() and not list(folder.rglob("pytorch_model.bin"))
    return found


@pytest.mark.parametrize(("offline", "asked"), [*((0, key) for key in ONLINE), *((1, key) for key in OFFLINE)])
def test_the_hub_gives_data_at_one_commit_or_says_why_not(outcomes, offline, asked):
    expected, found = (ONLINE, OFFLINE)[offline][asked], outcomes[(offline, *asked)]
    assert expected in found if isinstance(found, str) and " " in found else found == expected, found
