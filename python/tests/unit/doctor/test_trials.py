"""What the doctor tries out: programs that must end in time, memory, an NVMe path, and the hub."""
import http.server
import threading
import time
from pathlib import Path

import pytest
from support import SOURCE

from debzero.base.stack import stack
from debzero.doctor import process, trials
from debzero.doctor.chain import Context
from debzero.doctor.host_check import Requirements, ok
from debzero.doctor.probe import HostProbe


def test_a_program_that_hangs_is_ended_with_all_it_started(tmp_path):
    start = time.monotonic()
    result = process.run(["sh", "-c", f"sleep 60 & echo $! >{tmp_path}/child; echo working >&2; wait"], 1)
    assert time.monotonic() - start < 10
    assert result.error == "no end within 1 s; its last line: working"
    child = int((tmp_path / "child").read_text())
    until = time.monotonic() + 10
    while Path(f"/proc/{child}").exists():  # until init has reaped it
        assert time.monotonic() < until
        time.sleep(0.05)


def test_how_a_program_ended():
    assert process.run(["sh", "-c", "kill -ILL $$"], 5).error == "killed by SIGILL"
    assert process.run(["sh", "-c", "echo 'RuntimeError: no' >&2; echo bye >&2; exit 3"], 5).error == "RuntimeError: no"
    assert process.run(["sh", "-c", "exit 3"], 5).error == "exit code 3"
    assert "No such file" in process.run(["/no/such/program"], 5).error
    assert process.run(["sh", "-c", "echo '[\"a\", {\"b\": 1}]'; echo noise"],
                       5) == process.ProcessResult('["a", {"b": 1}]\nnoise\n', "")
    assert process.ProcessResult('["a", {"b": 1}]\nnoise\n', "").facts == {"a": {"b": 1}}
    both = process.run_side_by_side([["sh", "-c", "exit 1"], ["sleep", "60"]], [process.environment()] * 2, 30)
    assert [result.error for result in both] == ["exit code 1", process.ENDED_WITH_ANOTHER]


def context(root: Path, **results) -> Context:
    return Context(HostProbe(root), Requirements(), stack(), results={"gpu": ok("1"), **results})


@pytest.mark.parametrize(("limit", "rights", "status", "found"), [
    (8 * 2**20, "0000000000000000", "warn", "8 MiB"), (8 * 2**20, "000001ffffffffff", "ok", "does not bind root"),
    (-1, "0000000000000000", "ok", "no limit"), (64 * 2**30, "0000000000000000", "ok", "65536 MiB")])
def test_a_low_limit_of_pinned_memory_is_a_warning(tmp_path, monkeypatch, limit, rights, status, found):
    monkeypatch.setattr(trials.resource, "getrlimit", lambda which: (limit, limit))
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text(f"Name:\tx\nCapEff:\t{rights}\n")
    finding = trials.memlock(context(tmp_path))
    assert finding.status == status and found in finding.found
    assert status != "warn" or "debzero@NAME.service" in finding.advice


def test_an_nvme_path_is_tried_and_left_as_it_was(tmp_path):
    before = sorted(SOURCE.iterdir())
    asked = context(tmp_path)
    asked.nvme = SOURCE  # on the disk of the checkout, where the tests' own folder may lie in memory
    finding = trials.nvme(asked)
    assert "O_DIRECT works" in finding.found
    assert finding.data["write_gb_s"] > 0 and finding.data["read_gb_s"] > 0
    asked.fast = True
    assert trials.nvme(asked).status == "ok"
    assert sorted(SOURCE.iterdir()) == before


@pytest.mark.parametrize(("path", "found"), [("/dev/shm", "/dev/shm is a tmpfs"),
                                             ("/no/such", "/no/such is not a folder"),
                                             ("/proc", "O_DIRECT does not work in /proc|/proc has no room")])
def test_an_nvme_path_that_cannot_work_is_refused(tmp_path, path, found):
    asked = context(tmp_path)
    asked.nvme = Path(path)
    finding = trials.nvme(asked)
    assert finding.status == "fail" and finding.advice
    assert any(words in finding.found for words in found.split("|")), finding


class Hub(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:  # noqa: N802 - the library's name
        self.send_response(200)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        """Nothing."""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's address, and an empty cache."""
    from huggingface_hub import constants

    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def test_a_hub_that_answers_or_models_in_the_cache_will_do(hub, tmp_path):
    assert "answers; models in the local cache: none" in trials.hub(context(tmp_path)).found
    hub.shutdown()
    hub.server_close()
    finding = trials.hub(context(tmp_path))
    assert finding.status == "warn" and "cannot be reached" in finding.found and "HF_ENDPOINT" in finding.advice
    (tmp_path / "cache/models--google--bert").mkdir(parents=True)
    finding = trials.hub(context(tmp_path))
    assert finding.status == "ok" and finding.data["cached"] == ["google/bert"]
