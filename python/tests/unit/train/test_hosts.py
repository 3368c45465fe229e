"""One job over two hosts: here two folders and two addresses of the loopback, or two network namespaces."""
import json
import os
import re
import secrets
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import yaml
from support import Bench, plan_of
from warm import server

from debzero.base.files import read_json
from debzero.hosts.cluster import Cluster
from debzero.run.folder import RunFolder
from debzero.train import hosts

PORTS = iter(range(29600 + 20 * (os.getpid() % 1000), 65000))
ADDRESSES = {"gpu1": "127.0.0.2", "gpu2": "127.0.0.3"}
ZERO2 = {"zero__stage": 2, "ranks": 1, "train__epochs": 1}


class Pair:
    """Two hosts, each with its own folder, data and output."""

    def __init__(self, folder: Path) -> None:
        self.port, self.key = next(PORTS), secrets.token_hex(32)
        self.benches, self.variables = {}, {}
        for name in ADDRESSES:
            (folder / name).mkdir()
            self.benches[name] = Bench(folder / name)
            self.write(name)

    def write(self, name, key=None, **changes):
        """The cluster file of a host, and its key."""
        file = self.benches[name].folder / "cluster.yml"
        file.write_text(yaml.safe_dump({"hosts": ADDRESSES, "host": name, "port": self.port, **changes},
                                       sort_keys=False))
        file.with_suffix(".key").write_text(key or self.key)
        file.with_suffix(".key").chmod(0o600)

    def start(self, name, **changes):
        bench = self.benches[name]
        return server().start(["train", str(bench.job(**changes)), "--cluster", str(bench.folder / "cluster.yml")],
                              bench.folder, self.variables.get(name))

    def both(self, **changes):
        """What each printed, with its exit code."""
        processes = {name: self.start(name, **changes) for name in ADDRESSES}
        return {name: (process.communicate(300)[0], process.returncode) for name, process in processes.items()}

    def weights(self):
        return [weights_of(bench.output()) for bench in self.benches.values()]


def weights_of(output):
    return (output / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A job that two hosts have finished, and the same by two ranks on one."""
    pair = Pair(tmp_path_factory.mktemp("hosts"))
    pair.texts = pair.both(**ZERO2)
    alone = Bench(tmp_path_factory.mktemp("alone"))
    alone.train(**{**ZERO2, "ranks": 2})
    pair.alone = weights_of(alone.output())
    return pair


def test_two_hosts_train_to_the_same_weights_as_one(done):
    assert {name: code for name, (_, code) in done.texts.items()} == {"gpu1": 0, "gpu2": 0}, done.texts
    assert done.weights() == [done.alone, done.alone]


def test_each_host_has_the_whole_result_and_its_own_part_of_the_checkpoints(done):
    for name, bench in done.benches.items():
        files = {path.name for path in bench.output().glob("checkpoints/step-13/*")}
        shard = f"zero_pp_rank_{list(ADDRESSES).index(name)}_mp_rank_00_optim_states.pt"
        assert {path for path in files if "optim" in path} == {shard} and "mp_rank_00_model_states.pt" in files, files
        assert (bench.output() / "report.json").is_file()
    assert done.benches["gpu1"].losses("job") == done.benches["gpu2"].losses("job")


def test_a_job_that_has_finished_everywhere_is_not_trained_again(done):
    texts = {name: (process.communicate(100)[0], process.returncode) for name, process in {
        name: done.start(name, **ZERO2) for name in ADDRESSES}.items()}
    assert all(code == 0 and "Finished: " in text and "resuming" not in text for text, code in texts.values()), texts


def test_a_finished_host_does_not_wait_for_ever(bench, monkeypatch):
    monkeypatch.setattr(hosts, "DONE_PATIENCE", 0.3)
    resolved = plan_of(bench)
    cluster = Cluster(bench.folder / "cluster.yml", ADDRESSES, "gpu2", next(PORTS))
    cluster.key_file.write_text("a1" * 32)
    cluster.key_file.chmod(0o600)
    alone = hosts.Hosts(cluster, RunFolder(str(bench.folder)), lambda: 0)
    try:
        assert alone.meet(resolved, "job.yml", done=True)
    finally:
        alone.close()


@pytest.fixture
def pair(tmp_path):
    return Pair(tmp_path)


LONG = {**ZERO2, "train__epochs": 8, "train__log_every": 1, "checkpoint__steps": 20}


def step_of(bench):
    return read_json(bench.output() / "status.json").get("step") or 0


def wait_until(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)


def ended(processes, seconds=60):
    """What each printed, with its exit code, and how long the last took to end."""
    began = time.monotonic()
    return {name: (process.communicate(seconds)[0], process.returncode)
            for name, process in processes.items()}, time.monotonic() - began


def started(pair, step=25, **changes):
    processes = {name: pair.start(name, **changes) for name in ADDRESSES}
    wait_until(lambda: all(step_of(bench) >= step for bench in pair.benches.values()))
    return processes


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of LONG by two ranks of one host."""
    alone = Bench(tmp_path_factory.mktemp("whole"))
    alone.train(**{**LONG, "ranks": 2})
    return weights_of(alone.output())


def ends_like_one(pair, whole, **changes):
    texts = pair.both(**{**LONG, **changes})
    assert [code for _, code in texts.values()] == [0, 0], texts
    assert pair.weights() == [whole, whole]
    return texts


@pytest.mark.slow
def test_a_stop_on_one_host_stops_all_with_a_checkpoint(pair, whole):
    processes = started(pair, **LONG)
    for bench in pair.benches.values():
        status = json.loads(server().run(["status", str(bench.output()), "--json"], bench.folder).stdout)
        assert {*status["hosts"]} == {*ADDRESSES}, status
    processes["gpu2"].terminate()
    texts, _ = ended(processes)
    assert [code for _, code in texts.values()] == [143, 143], texts
    saved = [sorted(path.name for path in bench.output().glob("checkpoints/step-*")) for bench in pair.benches.values()]
    assert saved[0] and saved[0] == saved[1], saved
    assert "resuming from step" in ends_like_one(pair, whole)["gpu2"][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("gpu1", marks=pytest.mark.long), "gpu2"])
def test_a_killed_rank_ends_all_and_they_resume(pair, whole, name):
    processes = started(pair, **LONG)
    psutil.Process(processes[name].pid).children()[0].kill()
    texts, seconds = ended(processes)
    assert [code for _, code in texts.values()] == [1, 1] and seconds < 30, texts
    rank = list(ADDRESSES).index(name)
    other = next(text for host, (text, _) in texts.items() if host != name)
    assert f"debzero: {name}: rank {rank} was killed by SIGKILL" in other, texts
    ends_like_one(pair, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpu1", pytest.param("gpu2", marks=pytest.mark.long)])
def test_a_lost_host_ends_the_others_which_wait_for_it(pair, whole, name):
    processes = started(pair, **LONG)
    os.killpg(processes[name].pid, signal.SIGKILL)
    other = next(host for host in ADDRESSES if host != name)
    text, code = ended({other: processes[other]})[0][other]
    assert code == 1 and f"debzero: {name} closed the connection" in text, text
    again = pair.start(other, **LONG)
    table = pair.benches[other].output() / "hosts.json"
    wait_until(lambda: name in (read_json(table).get("missing") or {}))
    shown = server().run(["status", str(pair.benches[other].output())], pair.benches[other].folder)
    assert shown.returncode == 0 and shown.stdout.startswith(f"waiting for {name}"), shown.stdout
    assert re.search(rf"^  {name}  not there$", shown.stdout, re.MULTILINE), shown.stdout
    back = pair.start(name, **LONG)
    texts, _ = ended({other: again, name: back}, 300)
    assert f"waiting for {name}" in texts[other][0] and [code for _, code in texts.values()] == [0, 0], texts
    assert pair.weights() == [whole, whole]


@pytest.mark.long
@pytest.mark.parametrize("name", list(ADDRESSES))
def test_a_frozen_host_counts_as_lost(pair, name):
    processes = started(pair, **LONG)
    group = [psutil.Process(processes[name].pid), *psutil.Process(processes[name].pid).children()]
    for process in group:
        process.suspend()
    other = next(host for host in ADDRESSES if host != name)
    texts, seconds = ended({other: processes[other]})
    text, code = texts[other]
    assert code == 1 and seconds < 30 and f"debzero: {name} has not been heard of for 15 seconds" in text, text
    for process in group:
        process.resume()
    texts, seconds = ended({name: processes[name]})
    assert texts[name][1] == 1 and seconds < 30, texts


def test_other_data_on_one_host_is_named_with_both_hosts(pair):
    data = pair.benches["gpu2"].folder / "rows.csv"
    data.write_text(data.read_text() + "one more cat,animal\n")
    texts = pair.both(**ZERO2)
    for text, code in texts.values():
        assert code == 2 and re.search(
            r"data: train differs between the hosts: '\w+' on gpu1, '\w+' on gpu2", " ".join(text.split())), texts


def stopped(pair, **changes):
    """A run that both hosts have stopped in the middle."""
    processes = started(pair, **changes)
    processes["gpu1"].terminate()
    texts, _ = ended(processes)
    assert [code for _, code in texts.values()] == [143, 143], texts


@pytest.mark.long
def test_another_number_of_ranks_gets_the_shards_of_all_hosts(pair):
    stopped(pair, **LONG)
    texts = pair.both(**{**LONG, "ranks": 2})
    assert [code for _, code in texts.values()] == [0, 0], texts
    assert all("was written by 2 ranks; resharding it for 4 ranks" in text for text, _ in texts.values()), texts
    assert len(set(pair.weights())) == 1
    left = [path.name for bench in pair.benches.values() for path in bench.output().glob("checkpoints/.*")]
    assert not left, "copies for one start"


@pytest.mark.long
@pytest.mark.parametrize("changes", [{"zero__engine": "native"}, {"zero__stage": "none"}, {"zero__stage": 3},
                                     {"zero__stage": 3, "zero__engine": "native"}])
def test_every_engine_resumes_on_several_hosts(pair, tmp_path, changes):
    stopped(pair, **{**LONG, **changes})
    if changes == {"zero__stage": "none"}:  # a new disk: all of it is on the other host, too
        shutil.rmtree(pair.benches["gpu2"].output())
    alone = Bench(tmp_path)
    alone.train(**{**LONG, **changes, "ranks": 2})
    ends_like_one(pair, weights_of(alone.output()), **changes)


@pytest.mark.long
def test_shards_that_no_host_has_are_missed_and_not_replaced_by_nothing(pair):
    stopped(pair, **LONG)
    shutil.rmtree(pair.benches["gpu2"].output())
    texts = pair.both(**LONG)
    for text, code in texts.values():
        assert code == 1 and "no host has the shards of rank 1 of the checkpoint step-" in text, texts


@pytest.mark.slow
def test_hosts_that_were_lost_at_the_very_end_finish_again(done):
    """One of them had written that it has finished, the other had not."""
    status = done.benches["gpu2"].output() / "status.json"
    status.write_text(status.read_text().replace('"finished"', '"saving"'))
    texts = done.both(**ZERO2)
    assert [code for _, code in texts.values()] == [0, 0] and "resuming from step 13" in texts["gpu1"][0], texts
    assert done.weights() == [done.alone, done.alone]


@pytest.mark.long
def test_memory_that_runs_out_on_one_host_makes_all_start_with_less(pair):
    pair.variables["gpu2"] = {"DEBZERO_MEMORY_CAP": str(300 * 2**20)}
    job = {"ranks": 1, "train__micro_batch": 64, "train__global_batch": 128, "train__max_steps": 1,
           "data__max_length": 512, "data__padding": "max_length"}
    for _ in range(6):
        texts = pair.both(**job)
        if [code for _, code in texts.values()] == [0, 0]:
            break
        assert [code for _, code in texts.values()] == [1, 1], texts
        assert all("out of memory with a micro-batch of" in text for text, _ in texts.values()), texts
    reports = [json.loads((bench.output() / "report.json").read_text()) for bench in pair.benches.values()]
    assert reports[0]["micro_batch"] == reports[1]["micro_batch"] < 64 and reports[0]["global_batch"] == 128
