"""python/benchmarks/gpus.py: what it measures, what it keeps and continues, and its pages; rehearsed on CPU ranks."""
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

BENCH = Path(__file__).resolve().parents[3] / "benchmarks"
sys.path.insert(0, str(BENCH))

import common  # noqa: E402
import gpus  # noqa: E402
import gpus_page  # noqa: E402


@pytest.fixture
def start(tmp_path, monkeypatch):
    """gpus.py with command-line arguments, in this process: its exit code. `work` stands in for the trainings."""
    def run(*arguments, work=None):
        monkeypatch.setattr(sys, "argv", ["gpus.py", "--quick", "--results", str(tmp_path / "gpus.json"), "--scratch",
                                          str(tmp_path / "scratch"), *map(str, arguments)])
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setattr(gpus, "claim", lambda folder: None)
        monkeypatch.setattr(common, "versions", lambda *names: {"torch": "2"})
        monkeypatch.setattr(gpus.Series, "prepare", lambda self, cell: None)
        if work:
            monkeypatch.setattr(gpus.Series, "debzero", lambda self, cell: work(cell))
            monkeypatch.setattr(gpus.Series, "other", lambda self, cell: work(cell))
        return gpus.main()

    return run


def figures(cell):
    """Each rank adds half of one rank's speed."""
    speed = 100.0 * (1 + cell.ranks) / 2
    return {"windows": [speed - 1, speed, speed + 5], "memory_bytes": [2**30] * cell.ranks, "tflops": 50.0,
            "peak_share": 0.5}


def kept(folder):
    return json.loads((folder / "gpus.json").read_text())["cells"]


def test_every_cell_runs_in_rounds_and_a_cell_that_fails_does_not_stop_the_series(tmp_path, start, capsys):
    asked = []

    def work(cell):
        asked.append(cell.name)
        if cell.contestant == "zero2":
            raise common.Failed("a traceback\nnot done after 180 s")
        return figures(cell)

    arguments = ["--only", "bert-large-uncased", "--contestants", "none", "zero2", "ddp", "--repeats", "2"]
    assert start(*arguments, work=work) == 1
    cells = kept(tmp_path)
    assert asked[:2] == ["1/bert-large-uncased/padded/none", "1/bert-large-uncased/padded/ddp"]
    assert len(cells) == 8 and len(asked) == 14, "twice each, and once what failed"
    assert asked.index("2/bert-large-uncased/bucketed/none") == 6 and len(set(asked[:8])) == 8, "the first round"
    assert cells["2/bert-large-uncased/padded/zero2"]["failed"].endswith("not done after 180 s")
    printed = capsys.readouterr().out
    assert "2/bert-large-uncased/padded/zero2: FAILED: not done after 180 s" in printed
    assert "BERT-Large, 128 tokens, padded, 2 GPUs" in printed

    asked.clear()
    assert start(*arguments, work=work) == 1 and not asked, "all is there"
    assert start(*arguments, "--retry", work=figures) == 0
    assert [len(row["runs"]) for row in kept(tmp_path).values()] == [2] * 8


def test_a_series_that_is_cut_off_continues_with_what_is_left(tmp_path, start, capsys):
    def interrupted(cell):
        if cell.ranks == 2:
            raise KeyboardInterrupt
        return figures(cell)

    arguments = ["--only", "gpt2-xl", "--contestants", "none", "ddp", "--repeats", "1"]
    with pytest.raises(KeyboardInterrupt):
        start(*arguments, work=interrupted)
    assert list(kept(tmp_path)) == ["1/gpt2-xl/padded/none", "1/gpt2-xl/padded/ddp"]
    assert start(*arguments, "--minutes", "0", work=interrupted) == 0
    assert "2 runs are left: start it again" in capsys.readouterr().out
    asked = []
    assert start(*arguments, work=lambda cell: asked.append(cell.ranks) or figures(cell)) == 0
    assert asked == [2, 2] and len(kept(tmp_path)) == 4, "whole blocks are never padded: no bucketed cells"
    results = json.loads((tmp_path / "gpus.json").read_text())
    (tmp_path / "gpus.json").write_text(json.dumps({**results, "facts": {**results["facts"], "gpu": "another"}}))
    with pytest.raises(SystemExit, match="differ from this call in gpu"):
        start(*arguments, work=figures)


def test_the_pages_show_the_median_of_the_windows_against_one_gpu_and_why_a_cell_has_no_figures(tmp_path, start):
    def work(cell):
        if cell.contestant == "zero3":
            raise common.Failed("CUDA out of memory <here>")
        return figures(cell)

    start("--only", "gpt2-medium", "--contestants", "none", "zero3", "--repeats", "1", work=work)
    page, table = gpus_page.write(tmp_path / "gpus.json")
    line = next(line for line in table.read_text().split("## ")[2].splitlines() if "plain DDP" in line)
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "debzero, plain DDP", "150.0", "149.0 to 155.0", "1.50", "50.0%", "1.00"]
    assert "CUDA out of memory <here>" in table.read_text()
    html = page.read_text()
    assert "GPT-2 Medium, 512 tokens, padded, 2 GPUs" in html and "CUDA out of memory &lt;here&gt;" in html
    assert "its numbers mean nothing" in html and "make bench-gpus" in html


def test_fsdp_is_left_out_where_torch_has_none(monkeypatch):
    import torch

    monkeypatch.setattr(torch, "__version__", "2.5.1+cu124")
    assert "2.6" in gpus.left_out("fsdp2") and gpus.left_out("ddp") is None
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    assert gpus.left_out("fsdp2") is None


def test_a_command_that_hangs_is_killed_with_its_children_and_has_a_reason(tmp_path):
    program = tmp_path / "hangs.py"
    program.write_text("import subprocess, time\n"
                       "print(subprocess.Popen(['sleep', '600']).pid, flush=True)\n"
                       "time.sleep(600)\n")
    started = time.monotonic()
    with pytest.raises(common.Failed, match="not done after 2 s"):
        common.run([sys.executable, program], tmp_path / "log", 2)
    assert time.monotonic() - started < 60
    child = int((tmp_path / "log").read_text().split()[0])
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_page_is_made_of_its_own_results_alone(tmp_path, start, capsys):
    (tmp_path / "other.json").write_text('{"format": 1}')
    for name in ("other.json", "missing.json"):
        assert start("--render", tmp_path / name) == 2
        assert f"{name}: no results of gpus.py" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.html"))


ROWS = {"plain DDP, one GPU": "1/none", "plain DDP": "2/none", "ZeRO-1, native engine": "2/native1",
        "ZeRO-2, native engine": "2/native2", "ZeRO-3, native engine": "2/native3",
        "ZeRO-2 by DeepSpeed, `favour: speed`": "2/zero2-speed", "ZeRO-3 by DeepSpeed": "2/zero3",
        "two pipeline stages, the batch in quarters": "2/pipeline2",
        "tensor parallel over two, the whole batch on both": "2/tensor2",
        "transformers' Trainer with DeepSpeed ZeRO-2": "2/trainer2",
        "FSDP2 in a plain loop, layers compiled": "2/fsdp2"}
COLUMNS = ("bert-large-uncased/padded", "bert-large-uncased/bucketed", "gpt2-medium/padded", "gpt2-xl/padded")


def test_the_published_table_has_the_speeds_of_its_json():
    docs = BENCH.parents[1] / "docs" / "benchmarks"
    cells = json.loads((docs / "gpus-2.json").read_text())["cells"]
    table = (docs / "README.md").read_text().partition("Two H200s, bf16, without")[2].partition("\n\n")[2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.partition("\n\n")[0].splitlines()[2:]]
    assert sorted(name.replace("debzero, ", "", 1) for name, *_ in rows) == sorted(ROWS)
    for name, *shown in rows:
        ranks, contestant = ROWS[name.replace("debzero, ", "", 1)].split("/")
        for column, text in zip(COLUMNS, shown):
            speed = "(`favour: speed`)" in text
            cell = cells.get(f"{ranks}/{column}/{contestant}{'-speed' * speed}")
            assert text.partition("*")[0] == (f"{gpus_page.speed(cell):.0f}" if cell else ""), (name, column)


@pytest.mark.parametrize(("program", "words"), [
    ("gpus", "this host has 0 GPUs; --quick"), ("losses", "this host has no GPU; --quick"),
    ("start", "this host has no GPU; --tiny"), ("published", "finds no GPU here; --tiny")])
def test_without_a_gpu_nothing_is_begun_and_the_rehearsal_is_named(tmp_path, program, words):
    arguments = ["--results", tmp_path / "results"]
    arguments += [] if program == "published" else ["--scratch", tmp_path / "scratch"]
    done = subprocess.run([sys.executable, BENCH / f"{program}.py", *arguments], text=True, capture_output=True)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def rehearse(folder, *arguments):
    return subprocess.run([sys.executable, BENCH / "gpus.py", "--quick", "--results", folder / "gpus.json", "--scratch",
                           folder / "scratch", "--repeats", "1", *arguments], text=True, capture_output=True)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("arguments", [
    ["--only", "gpt2-xl", "--ranks", "1", "--contestants", "none", "ddp"],
    ["--only", "bert-large-uncased", "gpt2-medium"]], ids=["one rank", "all"])
def test_the_programs_run_on_cpu_ranks(tmp_path, arguments):
    done = rehearse(tmp_path, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = kept(tmp_path)
    for name, row in cells.items():
        if "left_out" in row:
            assert name.endswith("fsdp2")
            continue
        (run,) = row["runs"]
        assert len(run["windows"]) == gpus.WINDOWS and min(run["windows"]) > 0 and run["tflops"] >= 0
        assert len(run["memory_bytes"]) == int(name.split("/")[0]) and min(run["memory_bytes"]) > 0
    assert any(name.endswith("ddp") for name in cells)
