"""The doctor above the driver: fake packages and compilers for what is broken, this machine itself for what works."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import SOURCE

from debzero.base.stack import stack
from debzero.cli import main
from debzero.doctor import command, software, trials
from debzero.doctor.chain import Check, Context, run_checks
from debzero.doctor.host_check import CheckResult, Requirements, fail, ok, skip, warn
from debzero.doctor.probe import HostProbe

PINNED = f"{stack().torch}+cu{stack().cuda.replace('.', '')}"
TORCH = """
import types
__version__ = '{version}'
version = types.SimpleNamespace(cuda={cuda!r})
backends = types.SimpleNamespace(cudnn=types.SimpleNamespace(version=lambda: 8500))
class GPU:
    name, major, minor, total_memory = 'A100', {major}, 0, 40536 * 2**20
def init():
    {init}
cuda = types.SimpleNamespace(nccl=types.SimpleNamespace(version=lambda: (2, 14, 3)), init=init,
                             device_count=lambda: {gpus},
                             get_device_properties=lambda number: GPU, get_arch_list=lambda: ['sm_80', 'sm_86'])
"""
FACTS = """version='{version}'
installed_ops={ops!r}
accelerator_name='{accelerator}'
torch_info={{'version': '{torch}', 'cuda_version': '{cuda}'}}
"""


class Fakes:
    """A folder of fake packages, before the real ones for this process and its children; and a root for files."""

    def __init__(self, folder: Path) -> None:
        self.packages, self.root = folder / "packages", folder / "root"

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def torch(self, version: str = PINNED, cuda: str = stack().cuda, gpus: int = 2, init: str = "pass",
              major: int = 8) -> None:
        self.write(self.packages / "torch/__init__.py",
                   TORCH.format(version=version, cuda=cuda, gpus=gpus, init=init, major=major))

    def deepspeed(self, version: str = stack().deepspeed, accelerator: str = "cuda",
                  torch: str = software.short(stack().torch),
                  cuda: str = stack().cuda, ops: tuple = tuple(stack().deepspeed_ops), builder: str = "-std=c++17",
                  **operators: str) -> None:
        """`operators`: the source of those that are not sound; `builder`: of the operators for processors."""
        top = self.packages / "deepspeed"
        self.write(top / "ops/op_builder/cpu/builder.py", f"args = ['{builder}']\n")
        self.write(top / "__init__.py", f"__version__ = '{version}'\n")
        built = {**dict.fromkeys(ops, True), "sparse_attn": False}
        facts = FACTS.format(version=version, ops=built, accelerator=accelerator, torch=torch, cuda=cuda)
        self.write(top / "git_version_info_installed.py", facts)
        for name in ops:
            self.write(top / f"ops/some/{name}_op.py", operators.get(name, ""))

    def nvcc(self, text: str, code: int = 0) -> None:
        path = self.root / "cuda/bin/nvcc"
        self.write(path, f"#!/bin/sh\necho '{text}'\nexit {code}\n")
        path.chmod(0o755)

    def examine(self, gpus: int = 2, fast: bool = False) -> dict:
        """{check: result} of the software's part, on a host whose driver works."""
        probe = HostProbe(self.root)
        probe.__dict__["smi_gpus"] = [{"name": "A100"}] * gpus
        results = {name: ok("fine") if gpus else skip("no GPU") for name in ("gpu", "nvidia-smi", "driver")}
        context = Context(probe, Requirements(gpus=gpus), stack(), fast, results=results)
        run_checks(software.CHECKS, context, lambda check: None)
        return context.results


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    made = Fakes(tmp_path)
    made.torch()
    made.deepspeed()
    made.nvcc(f"Cuda compilation tools, release {stack().cuda}, V{stack().cuda}.99")
    made.write(made.root / "proc/cpuinfo", "flags\t\t: fpu fma sse4_2 avx avx2\n")
    monkeypatch.setenv("CUDA_HOME", str(made.root / "cuda"))
    monkeypatch.setenv("PYTHONPATH", str(made.packages))
    monkeypatch.syspath_prepend(str(made.packages))
    for name in ("torch", "deepspeed"):  # other tests may have imported the real ones
        monkeypatch.delitem(sys.modules, name, raising=False)
    return made


def statuses(findings: dict) -> dict:
    return {name: finding.status for name, finding in findings.items()}


def first(findings: dict):
    return command.first_failure(findings.values())


def test_a_sound_host_is_sound(fakes):
    findings = fakes.examine()
    wanted = dict.fromkeys(findings, "ok")
    # This Python, and a machine that has no system-wide cuDNN, differ from stack.yml.
    assert {**statuses(findings), "environment": "ok", "cudnn": "ok"} == wanted
    assert findings["torch.cuda"].data["devices"] == [{"name": "A100", "capability": "8.0", "memory_mb": 40536}] * 2
    assert findings["operators"].data["load"] == sorted(stack().deepspeed_ops)
    assert "torch's own: 8.5.0" in findings["cudnn"].found


KILLED = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n"
NO_LIBCUDA = "raise ImportError('libcuda.so.1: cannot open shared object file: No such file or directory')\n"
# What is broken, the first check that must fail, and words of what it found and of its advice.
BROKEN = {
    "no compiler": (lambda f: (f.root / "cuda/bin/nvcc").unlink(), "compiler", "There is no", "role cuda"),
    "a compiler that fails": (lambda f: f.nvcc("Segmentation fault", 139), "compiler", "Segmentation fault",
                              "CUDA_HOME"),
    "torch that crashes": (lambda f: f.write(f.packages / "torch/__init__.py", KILLED), "torch", "killed by SIGILL",
                           "remove"),
    "torch without a library": (lambda f: f.write(f.packages / "torch/__init__.py",
                                                  "raise ImportError('libcudart.so.11.0: no such file')"),
                                "torch", "libcudart.so.11.0", "runtime.yml"),
    "torch for CPUs": (lambda f: f.torch(f"{stack().torch}+cpu", None), "torch", "CPUs only", "runtime.yml"),
    "an old driver": (lambda f: f.torch(init="raise RuntimeError('The driver is insufficient for the CUDA runtime')"),
                      "torch.cuda", "insufficient", "newer driver"),
    "no fabric manager": (lambda f: f.torch(init="raise RuntimeError('Error 802: system not yet initialized')"),
                          "torch.cuda", "802",
                          "fabricmanager"),
    "CUDA that crashes": (lambda f: f.torch(init="import os; os.abort()"), "torch.cuda", "SIGABRT", "nvidia-smi"),
    "a GPU that torch does not know": (lambda f: f.torch(major=9), "torch.cuda", "compute capability 9.0",
                                       "built for this GPU"),
    "a GPU that torch does not see": (lambda f: f.torch(gpus=1), "torch.cuda", "sees 1 GPUs and nvidia-smi 2", "video"),
    "an old processor": (lambda f: f.write(f.root / "proc/cpuinfo", "flags\t: fpu sse4_2 avx\n"), "processor",
                         "AVX2 and FMA", "2013"),
    "DeepSpeed that cannot be imported": (lambda f: f.write(f.packages / "deepspeed/__init__.py",
                                                            "raise ImportError('no pydantic')"),
                                          "deepspeed", "no pydantic", "runtime.yml"),
    "a wheel for CPUs": (lambda f: f.deepspeed(accelerator="cpu"), "deepspeed", "'cpu'",
                         "deepspeed_wheel_accelerator: cuda"),
    "a wheel for another torch": (lambda f: f.deepspeed(torch="2.1"), "deepspeed", "built for torch 2.1",
                                  "runtime.yml"),
    "a wheel for another CUDA": (lambda f: f.deepspeed(cuda="11.8"), "deepspeed", "CUDA 11.8", "runtime.yml"),
    "an operator with foreign instructions": (lambda f: f.deepspeed(cpu_adam=KILLED), "operators",
                                              "cpu_adam does not load: killed by SIGILL", "controller's store"),
    "an operator without its library": (lambda f: f.deepspeed(async_io="raise ImportError('libaio.so.1: cannot open')"),
                                        "operators",
                                        "async_io does not load: ImportError: libaio.so.1", "runtime.yml"),
    "an operator whose file is gone": (lambda f: (f.packages / "deepspeed/ops/some/quantizer_op.py").unlink(),
                                       "operators",
                                       "quantizer does not load", "runtime.yml"),
    "libcuda out of reach": (lambda f: f.deepspeed(async_io=NO_LIBCUDA), "operators", "libcuda.so.1", "runtime.yml"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_the_first_failing_line_names_the_cause_and_what_to_do(fakes, name):
    break_it, check, found, advice = BROKEN[name]
    break_it(fakes)
    findings = fakes.examine()
    failure = first(findings)
    assert failure is not None, statuses(findings)
    assert (failure.check, found in failure.found, advice in failure.advice) == (check, True, True), failure
    assert [f.check for f in findings.values() if f.status == "fail"] == [check], "what follows from it is skipped"
    if check not in ("torch.cuda", "operators"):
        assert (findings["operators"].status, findings["operators"].found) == ("skip", f"because of {check}")


# What differs from stack.yml without being broken, the check that must warn, and words of what it found.
DIFFERENT = {
    "a newer compiler": (lambda f: f.nvcc("release 13.0, V13.0.48"), "compiler", "CUDA 13.0"),
    "a newer torch": (lambda f: f.torch(PINNED + ".post1"), "torch",
                      f"{PINNED}.post1, built for CUDA {stack().cuda}; stack.yml pins {PINNED}"),
    "a newer DeepSpeed": (lambda f: f.deepspeed("0.19.8"), "deepspeed", "0.19.8; stack.yml pins"),
    "a missing operator": (lambda f: f.deepspeed(ops=tuple(stack().deepspeed_ops[1:])), "operators",
                           "fused_adam missing"),
    "no operator at all": (lambda f: f.deepspeed(ops=(), torch="0.0"), "operators", "none is prebuilt"),
}


@pytest.mark.parametrize("name", list(DIFFERENT))
def test_what_differs_from_stack_yml_is_a_warning(fakes, name):
    change, check, found = DIFFERENT[name]
    change(fakes)
    findings = fakes.examine()
    assert first(findings) is None
    finding = findings[check]
    assert finding.status == "warn" and found in finding.found and finding.advice, finding


def test_what_cannot_be_compiled_here_is_not_said_to_be_compiled_later(fakes):
    """torch 1.13 takes C++14, and DeepSpeed's operators for processors need C++17."""
    fakes.deepspeed(ops=(), builder="-O3")
    finding = fakes.examine(gpus=0)["operators"]
    assert finding.status == "warn" and "cannot compile it" in finding.found and "compiles them" not in finding.found
    assert "cpu_adam" in finding.found and "async_io" in finding.found and "to offload" in finding.advice


def test_an_operator_that_jobs_need_and_nobody_can_build_is_a_failure(fakes, monkeypatch):
    fakes.deepspeed(ops=tuple(name for name in stack().deepspeed_ops if name != "fused_adam"))
    assert fakes.examine()["operators"].status == "warn", "compiled when a job first needs it"
    monkeypatch.setenv("CXX", "no-such-compiler")
    finding = fakes.examine()["operators"]
    assert finding.status == "fail" and "fused_adam is not prebuilt, and there is no C++ compiler" in finding.found
    assert fakes.examine(gpus=0)["operators"].status != "fail", "processors take torch's own"


def test_any_compiler_of_the_same_cuda_will_do(fakes):
    fakes.nvcc("Cuda compilation tools, release 11.2, V11.2.152")
    finding = fakes.examine(fast=True)["compiler"]
    assert finding.status == "ok" and "any 11.x will do" in finding.found


def test_the_system_s_cudnn_is_read_from_its_header_and_not_compared_with_torch_s(fakes):
    fakes.write(fakes.root / "usr/include/cudnn_version.h",
                "#define CUDNN_MAJOR 8\n#define CUDNN_MINOR 4\n#define CUDNN_PATCHLEVEL 1\n")
    finding = fakes.examine(fast=True)["cudnn"]
    assert finding.status == "ok" and finding.data == {"system": "8.4.1", "torch": "8.5.0"}


def test_without_a_gpu_its_checks_are_skipped_and_one_wheel_serves_all(fakes):
    """The same wheel as on GPU hosts; an operator that wants the driver's library is named, and no fault."""
    fakes.deepspeed(async_io=NO_LIBCUDA)
    (fakes.root / "cuda/bin/nvcc").unlink()
    findings = fakes.examine(gpus=0)
    assert first(findings) is None
    assert {name for name, finding in findings.items() if finding.found == "no GPU"} >= {"compiler", "cudnn",
                                                                                         "torch.cuda"}
    assert findings["deepspeed"].status == findings["operators"].status == "ok"
    assert "async_io would need libcuda" in findings["operators"].found


def test_a_missing_environment_is_the_cause_of_all_that_is_missing(fakes, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    findings = fakes.examine()
    assert "is missing" in first(findings).found and "debzero-runtime" in first(findings).advice
    assert {findings[name].found for name in ("torch", "torch.cuda", "deepspeed",
                                              "operators")} == {"because of environment"}


@pytest.mark.parametrize(("check", "code"), [("environment", 2), ("operators", 2), ("driver", 1), ("shm", 1), ("", 0)])
def test_a_job_does_not_start_again_for_what_a_restart_cannot_change(monkeypatch, check, code):
    """As the unit starts it: its exit code 2 is final, after 1 systemd tries again."""
    def examine(context):
        context.results.update({name: ok("fine")._replace(check=name) for name in ("gpu", "driver", "shm")})
        context.results.update({check: fail("broken", "fix it")._replace(check=check)} if check else {})

    monkeypatch.setattr(command, "examine_host", examine)
    monkeypatch.setattr(command, "run_checks", lambda *_: None)
    trained = []
    monkeypatch.setattr("debzero.train.command._train", lambda *_: trained.append(True) or 0)
    monkeypatch.setattr("debzero.train.agreement.block_signals", lambda: None)
    assert main(["train", "--doctor", "job.yml"]) == code
    assert bool(trained) is not bool(check)


def test_a_missing_deepspeed_is_named(fakes, monkeypatch):
    monkeypatch.setattr(software, "wheel", lambda: None)
    assert first(fakes.examine()).found.startswith("DeepSpeed is not installed in")


@pytest.mark.parametrize(("capability", "architectures", "runs"), [
    ("8.0", ["sm_70", "sm_80"], True), ("8.6", ["sm_80"], True), ("8.0", ["sm_86"], False),
    ("9.0", ["sm_80", "sm_86"], False),
    ("9.0", ["sm_80", "compute_80"], True), ("9.0", ["sm_90a"], True), ("10.0", ["sm_90", "sm_100"], True),
    ("12.0", ["sm_100"], False)])
def test_which_gpus_run_which_code(capability, architectures, runs):
    assert software.runs_on(capability, architectures) is runs


def test_the_chain_skips_what_follows_and_survives_a_defect():
    def defect(context):
        raise KeyError("x")

    checks = [Check("a", lambda context: fail("broken", "fix it")), Check("b", lambda context: ok("x"), needs=("a",)),
              Check("c", lambda context: ok("x"), needs=("b",)), Check("d", lambda context: skip("not here")),
              Check("e", lambda context: ok("x"), after=("d",)), Check("f", lambda context: ok("x"), after=("c",)),
              Check("g", defect), Check("h", lambda context: ok("x"), slow=True)]
    context = Context(HostProbe(), Requirements(), {}, fast=True)
    seen = []
    run_checks(checks, context, lambda check: seen.append(check.name))
    assert [(f.check, f.status, f.found) for f in context.results.values()] == [
        ("a", "fail", "broken"), ("b", "skip", "because of a"), ("c", "skip", "because of a"),
        ("d", "skip", "not here"), ("e", "ok", "x"),
        ("f", "skip", "because of a"), ("g", "fail", "the check itself failed: KeyError: 'x'")]
    assert seen == ["a", "d", "e", "g"]


def test_an_all_reduce_that_fails_names_the_gpu(fakes, tmp_path):
    """The fake torch has no distributed package at all."""
    finding = trials.nccl(Context(HostProbe(tmp_path), Requirements(), stack(),
                                  results={"torch.cuda": ok("2", devices=[{}, {}])}))
    assert finding.status == "fail" and "An all-reduce over 2 GPUs fails on GPU" in finding.found
    assert "torch.distributed" in finding.found and "NCCL_DEBUG=INFO" in finding.advice


def test_the_table_ends_with_the_cause_and_gathers_what_was_skipped():
    findings = [f._replace(check=name) for name,
                f in {"a": ok("fine"), "b": skip("no GPU"), "c": fail("broken", "fix it"),
                                                       "d": skip("no GPU"), "e": warn("odd", "look")}.items()]
    assert command.as_text(findings, 80).splitlines() == [
        "a  ok    fine", "c  fail  broken", "         -> fix it", "e  warn  odd", "         -> look",
        "   skip  no GPU: b, d", "",
        "This host cannot train (1 ok, 1 warn, 1 fail, 2 skip). First cause: c: broken", "-> fix it"]
    assert "\x1b" not in command.as_text([CheckResult("a", "fail", "\x1b[2J", "fix it")], 80)


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "debzero", "doctor", *arguments], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(SOURCE), **environment})


def test_this_machine_without_a_gpu_can_train_and_nothing_is_left_behind(tmp_path):
    """The real thing: torch, DeepSpeed (in the tests' environment without prebuilt operators), two ranks, ZeRO-2."""
    done = doctor("--json", TMPDIR=str(tmp_path), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert set(answer) == {"ok", "findings", "host", "versions"} and answer["ok"] is True
    found = {finding["check"]: finding for finding in answer["findings"]}
    for finding in answer["findings"]:
        assert set(finding) == {"check", "status", "found", "advice", "data"}
        assert finding["status"] in ("ok", "warn", "skip") and finding["found"]
        assert bool(finding["advice"]) is (finding["status"] == "warn")
    assert {found[name]["status"] for name in ("gpu", "compiler", "torch.cuda", "nccl", "memlock")} == {"skip"}
    assert all("no NVIDIA GPU" in found[name]["found"] for name in ("compiler", "torch.cuda", "nccl", "nvidia-smi"))
    assert found["step"]["status"] == "ok"
    assert (found["step"]["data"]["world_size"], found["step"]["data"]["zero_stage"]) == (2, 2)
    assert answer["versions"]["torch"] == PINNED and answer["versions"]["pinned"]["torch"] == stack().torch
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_expected_and_missing_is_the_cause():
    done = doctor("--fast", "--json", "--gpus", "1")
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    failures = [finding["check"] for finding in answer["findings"] if finding["status"] == "fail"]
    assert answer["ok"] is False and failures == ["gpu"]
    assert {finding["found"] for finding in answer["findings"]
            if finding["check"] in ("compiler", "torch.cuda")} == {"because of gpu"}
    assert not {"nccl", "hub", "step"} & {finding["check"] for finding in answer["findings"]}


def test_a_wrong_number_of_gpus_is_a_usage_error():
    assert doctor("--gpus", "some").returncode == 2
    done = doctor("--fast", DEBZERO_GPUS="some")
    assert done.returncode == 2 and "DEBZERO_GPUS" in done.stderr and "Traceback" not in done.stderr


def test_an_interrupted_doctor_leaves_nothing_behind(tmp_path):
    process = subprocess.Popen([sys.executable, "-m", "debzero", "doctor"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": str(SOURCE), "TMPDIR": str(tmp_path),
                                    "HF_HUB_OFFLINE": "1"})
    until = time.monotonic() + 120
    while not list(tmp_path.glob("debzero-doctor-*/out")):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, complaints = process.communicate(timeout=30)
    assert process.returncode == 143 and "Traceback" not in complaints
    assert list(tmp_path.iterdir()) == []
