"""One measured run: the job that it trains, what it leaves, and its end when it is interrupted or runs out of time."""
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from support import SOURCE

from debzero.check import checks
from debzero.measure import run as runs
from debzero.measure.derive import derive
from debzero.measure.records import MeasuredRun
from debzero.resolve.sharding import Sharding
from debzero.run.folder import RunFolder


def test_a_derived_job_differs_in_what_is_compared_alone(bench, monkeypatch):
    monkeypatch.setattr("debzero.check.operators.unavailable", lambda *_: "")
    resolved = checks.check(bench.job(zero__stage=2, train__evaluate_every=1, train__select="best",
                                  deepspeed={"gradient_clipping": 0.5}))
    path = bench.folder / "derived.yml"
    path.write_text(derive(resolved, Sharding(3, "cpu", "cpu"), str(bench.folder / "out"), 10, 20).as_yaml())
    derived = checks.check(path)
    assert (derived.stage, derived.job.zero.offload_optimizer, derived.job.zero.offload_param) == (3, "cpu", "cpu")
    assert derived.batch == resolved.batch and derived.precision == resolved.precision
    assert derived.job.data == resolved.job.data.model_copy(update={"padding": "max_length"}), "one shape to compile"
    assert derived.job.train.gradient_clipping == 0.5 and derived.deepspeed is None
    assert (derived.job.train.max_steps, derived.job.train.log_every, derived.job.train.select) == (30, 10, "last")
    assert derived.job.train.evaluate_every is None
    baseline = bench.folder / "baseline.yml"
    baseline.write_text(derive(resolved, Sharding(0), str(bench.folder / "out"), 10, 20).as_yaml())
    assert not checks.check(baseline).uses_deepspeed


def test_the_kinds_of_failures_are_distinguished(bench, tmp_path):
    output = RunFolder(str(tmp_path / "out"))
    output.folder.mkdir()
    output.update(state="failed", error="rank 1 failed: CUDA out of memory. Tried to\n  -> set a smaller")
    reason = "rank 1 failed: CUDA out of memory. Tried to -> set a smaller"
    assert runs._failure(1, output, "log") == MeasuredRun("memory", reason)
    output.update(error="rank 0 was killed by SIGSEGV")
    assert runs._failure(1, output, "log").kind == "failed"
    job = derive(checks.check(bench.job()), Sharding(1), str(bench.folder / "runs" / "x" / "out"), 1, 1)
    odd = job.model_copy(update={"train": job.train.model_copy(update={"global_batch": 31})})
    found = runs.measure(odd, bench.folder / "runs" / "x", 1, 60)
    assert found.kind == "refused" and "31 samples cannot be" in found.reason and "->" in found.reason
    assert runs.measure(job, bench.folder / "runs" / "x", 1, 1).kind == "time"
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(bench.folder) in " ".join(p.info["cmdline"] or [])]


def test_a_killed_run_leaves_no_lock_that_later_builds_would_wait_for(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for name, age in (("ours", 0), ("theirs", 100)):
        lock = tmp_path / "py" / name / "lock"
        lock.parent.mkdir(parents=True)
        lock.touch()
        os.utime(lock, (time.time() - age,) * 2)
    runs.remove_build_locks(time.time() - 50)
    assert [path.parent.name for path in tmp_path.glob("**/lock")] == ["theirs"]


def test_a_run_is_killed_with_what_it_starts_meanwhile(tmp_path):
    (tmp_path / "breeder.py").write_text("import subprocess\nwhile True:\n    subprocess.Popen(['sleep', '4242'])\n")
    breeder = psutil.Popen([sys.executable, str(tmp_path / "breeder.py")], start_new_session=True)
    session = os.getsid(breeder.pid)
    time.sleep(0.3)
    runs.kill_tree(breeder)
    left = [process for process in psutil.process_iter() if _session(process) == session]
    for process in left:
        process.kill()
    assert not left
    runs.kill_tree(breeder)  # which has ended already


def _session(process):
    try:
        return os.getsid(process.pid) if process.status() != psutil.STATUS_ZOMBIE else None
    except (ProcessLookupError, psutil.NoSuchProcess):
        return None


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hang_up_ends_the_command_unless_nohup_says_otherwise(ignored):
    program = ("import os, signal; from debzero.measure.run import end_on_signals\n"
               f"signal.signal(signal.SIGHUP, signal.SIG_{'IGN' if ignored else 'DFL'})\n"
               "end_on_signals(); os.kill(os.getpid(), signal.SIGHUP); os.kill(os.getpid(), signal.SIGTERM)")
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(SOURCE)})
    assert done.returncode == 128 + (signal.SIGTERM if ignored else signal.SIGHUP)


def test_an_interruption_while_a_run_starts_ends_that_run(bench, monkeypatch):
    started = []

    class Popen(psutil.Popen):
        def __init__(self, *words, **options):
            super().__init__(*words, **options)
            started.append(psutil.Process(self.pid))
            os.kill(os.getpid(), signal.SIGTERM)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(psutil, "Popen", Popen)
    job = derive(checks.check(bench.job()), Sharding(1), str(bench.folder / "runs" / "x" / "out"), 1, 1)
    runs.end_on_signals()
    try:
        with pytest.raises(SystemExit):
            runs.measure(job, bench.folder / "runs" / "x", 1, 60)
        assert not started[0].is_running()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for process in started:
            with suppress(psutil.NoSuchProcess):
                runs.kill_tree(process)
