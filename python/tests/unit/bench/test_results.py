"""results.json: its figures, the published ones, what is rendered from it, and what a bad one is answered with."""
import json
import os
import subprocess
import sys

import pytest
from bench_results import GB, failed, run, sample
from support import SOURCE

from debzero.bench import page, results
from debzero.cli import main


def test_results_are_read_as_they_were_written(tmp_path):
    page.write(sample(), tmp_path / "results.json")
    assert results.load(tmp_path) == sample()


def test_a_summary_is_the_highest_memory_and_the_median_speed():
    found = results.summarize([run(5, 100, memory_bytes=(5 * GB, 4 * GB)), run(5, 140, memory_bytes=(3 * GB, 6 * GB)),
                               run(5, 110, memory_bytes=(1, 1)), failed("time", "late")])
    assert (found.repeats, found.memory_bytes, found.memory_bytes_per_rank) == (3, 6 * GB, (5 * GB, 6 * GB))
    speed = found.samples_per_second
    assert (speed.median, speed.lowest, speed.highest, speed.spread) == pytest.approx((110, 100, 140, 40 / 110))
    assert found.steps_per_second.median == pytest.approx(110 / 64)
    assert results.summarize([failed("time", "late")]) is None


@pytest.mark.parametrize(("change", "key", "reason"), [
    (lambda values: values.pop("host"), "host", "is missing"),
    (lambda values: values.update(format=0), "format", "must be 1, not 0"),
    (lambda values: values["batch"].update(ranks="two"), "batch.ranks", "must be a whole number, not a text"),
    (lambda values: values["configurations"][1].update(stage=4), "configurations[1].stage",
     "must be one of none, 1, 2, 3, not 4")])
def test_bad_results_are_bad_input(tmp_path, capsys, change, key, reason):
    values = sample().as_json()
    change(values)
    file = tmp_path / "results.json"
    file.write_text(json.dumps(values))
    for command in (["--render", str(file)], ["--compare", str(file), str(file), "-o", str(tmp_path / "x.html")]):
        assert main(["bench", *command]) == 2
        error = capsys.readouterr().err
        assert str(file) in error and key in error and reason in error and "Traceback" not in error


def test_pages_are_rendered_without_the_trainers_libraries(tmp_path):
    """On an Ansible controller, for one."""
    page.write(sample(), tmp_path / "results.json")
    program = ("import sys; sys.modules.update(dict.fromkeys(('pydantic', 'psutil', 'torch', 'numpy'))); "
               f"from debzero.cli import main; sys.exit(main(['bench', '--render', {str(tmp_path)!r}]) or "
               f"main(['bench', '--compare', {str(tmp_path)!r}, {str(tmp_path)!r}, '-o', {str(tmp_path)!r}]))")
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(SOURCE)},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pages_go_where_nothing_is_lost(bench, capsys):
    folders = [bench.folder / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
        page.write(sample(folder.name), folder / page.FILES[0])
    compare = ["bench", "--compare", *map(str, folders), "-o"]
    assert main([*compare, str(folders[0])]) == 0
    assert {path.name for path in folders[0].iterdir()} == {*page.FILES, "comparison.html"}
    assert main([*compare, str(bench.folder / "no" / "such" / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    (folders[1] / page.NAME).unlink()
    assert main(["bench", "--render", str(folders[1] / "results.json")]) == 0 and (folders[1] / page.NAME).is_file()
    (folders[1] / "results.json").rename(folders[0] / "other.json")
    before = (folders[0] / page.NAME).read_text()
    assert main(["bench", "--render", str(folders[0] / "other.json")]) == 0
    assert (folders[0] / "other.html").is_file() and (folders[0] / page.NAME).read_text() == before


PUBLISHED = [path for path in sorted((SOURCE.parents[1] / "docs" / "benchmarks").glob("*.json"))
             if "configurations" in json.loads(path.read_text())]


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_bench_is_whole_and_renders(file, tmp_path):
    """Every row has its figures, from as many runs as the others; one of answers alone has no such rows. The page
    is rendered from a copy, beside which it lands."""
    bench = results.load(file)
    assert all(run.measured for row in bench.configurations for run in row.runs)
    assert bench.configurations or bench.inference and bench.inference.timings, "nothing was measured"
    assert len({len(row.runs) for row in bench.configurations}) <= 1, "a row was measured less often than the others"
    for row, written in zip(bench.as_json()["configurations"], json.loads(file.read_text())["configurations"]):
        assert json.loads(json.dumps(row["summary"])) == written["summary"], "figures that its runs do not give"
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    assert main(["bench", "--render", str(copy)]) == 0
    text = copy.with_suffix(".html").read_text()
    assert [row.label for row in bench.configurations if f'<span class="label">{row.label}</span>' not in text] == []
    assert copy.read_bytes() == file.read_bytes(), "rendering leaves the results as they are"


def test_each_published_bench_is_found():
    assert {path.stem for path in PUBLISHED} == {"article-2", "article-2-deepspeed", "article-2-gpus", "article-4",
                                                 "bert-large-1", "inference-h200"}
