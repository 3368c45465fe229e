"""The tables and pages of `debzero bench`: every figure is in them, and a browser shows them well at any width."""
import csv
import io
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from bench_results import HOST, failed, row, sample
from browser import measured

from debzero.base.text import bytes_text
from debzero.bench import comparison, page, tables
from debzero.bench.results import Row
from debzero.resolve.sharding import Sharding


def texts(page_text):
    return " ".join(" ".join(ElementTree.fromstring(page_text.split("\n", 1)[1]).itertext()).split())


def test_the_tables_hold_every_row_and_every_figure_of_the_results():
    bench = sample()
    markdown, lines = tables.as_markdown(bench), list(csv.DictReader(io.StringIO(tables.as_csv(bench))))
    assert [line["configuration"] for line in lines] == [found.name for found in bench.configurations]
    for found, line in zip(bench.configurations, lines):
        if found.summary:
            assert int(line["memory_bytes"]) == found.summary.memory_bytes and line["reason"] == ""
            assert f"| {found.label} | {bytes_text(found.summary.memory_bytes)} |" in markdown
        else:
            assert line["memory_bytes"] == "" and line["reason"] == found.reason
    assert all(meaning in markdown for meaning in bench.definitions.values())


def test_the_page_shows_the_facts():
    bench = sample()
    text = texts(page.render(bench))
    for found in bench.configurations:
        assert found.label in text and found.sharding.about in text
        assert all(cell in text for cell in tables.cells(bench, found) or [found.reason])
    facts = [*bench.versions.values(), *bench.definitions.values(), bench.host.driver, bench.command]
    assert [fact for fact in [*facts, "32 GB+", "defines neither"] if fact not in text] == []
    assert ("ZeRO-2 + CPU needs the least memory: 2.51 GiB a rank, 66% less than plain DDP, at 5% of its speed."
            in text)
    assert "not comparable" not in text and "Baseline" not in text
    assert "Plain DDP is the fastest: 849 samples/s." in text
    assert "+4.0%" in text and "temporary" in text
    unplanned = replace(bench, configurations=tuple(replace(found, predicted=None) for found in bench.configurations))
    assert "Predicted" not in page.render(unplanned)


def test_the_terminals_table_is_aligned():
    title, headings, *lines = tables.as_text(sample()).splitlines()
    assert title == "bert-large-uncased on An invented GPU 40GB, 2 ranks"
    assert {len(line) for line in lines if "GiB" in line and "memory:" not in line} == {len(headings)}
    assert lines[6].startswith("ZeRO-3 + CPU   out of memory:")


def test_hatching_is_explained_where_a_bar_is_hatched():
    assert page.render(sample()).count("Hatched: with offload.") == 2
    plain = sample(configurations=tuple(row(Sharding(stage)) for stage in range(4)))
    assert "Hatched" not in page.render(plain) and "url(#hatch)" not in page.render(plain)
    unmeasured = sample(configurations=(row(Sharding(0)), row(Sharding(3, "cpu", "cpu"))))
    assert "Hatched" not in page.render(unmeasured)


@pytest.mark.parametrize(("model", "gpus", "shown"), [
    ("bert-large-uncased", 2, True), ("google-bert/bert-large-cased", 1, True), ("bert-large", 0, False),
    ("bert-base-uncased", 2, False), ("albert-large-v2", 2, False), ("bert from scratch", 2, False)])
def test_the_article_is_shown_beside_what_it_measured_alone(model, gpus, shown):
    text = page.render(sample(model=model, host=replace(HOST, gpus=gpus)))
    assert ("Beside the article" in text) == ("32 GB+" in text) == shown


@pytest.mark.parametrize(("layers", "shown"), [(24, True), (2, False)])
def test_a_shape_counts_as_bert_large_by_its_size(layers, shown):
    model = {"type": "bert", "hidden_size": 1024, "num_hidden_layers": layers}
    text = page.render(sample(model="bert from scratch", job={**sample().job, "model": model}))
    assert ("Beside the article" in text) == shown


def test_a_rehearsal_says_that_its_speed_is_not_comparable():
    bench = sample(speed_comparable=False, host=replace(HOST, gpus=1))
    bench = replace(bench, settings=replace(bench.settings, cap_gib=24))
    text = texts(page.render(bench))
    assert "2 ranks shared 1 GPU:" in text and "limited to 24 GiB" in text
    assert "of its speed" not in text and "is the fastest" not in text
    assert "speed is not comparable" in tables.as_markdown(bench) and "speed is not comparable" in tables.as_text(bench)


def test_a_failed_repeat_among_good_ones_is_noted_and_its_row_has_its_figures():
    bench = sample()
    zero1 = bench.configurations[1]
    runs = (*zero1.runs[:-1], failed("failed", "the loss became NaN"))
    bench = bench.with_row(replace(zero1, runs=runs))
    for text in (texts(page.render(bench)), tables.as_markdown(bench), tables.as_text(bench)):
        assert "ZeRO-1: its figures are those of 2 of 3 runs; then failed: the loss became NaN." in text
    without = texts(page.render(bench)).partition("Without a result: ")[2].split(".")[0]
    assert "ZeRO-3 + CPU" in without and "ZeRO-1" not in without


def test_hostile_texts_stay_texts():
    bench = sample("<script>alert(1)</script>", model="<b>x</b>&", command="debzero bench '<i>'")
    assert "<script>alert(1)</script>" in texts(page.render(bench))
    assert "<script" not in page.render(bench) and "<b>x</b>" not in page.render(bench)


def test_a_comparison_shows_every_host_and_what_differs():
    one, two = sample("gpu1"), sample("gpu2", 2)
    three = sample("gpu3", speed_comparable=False, precision="bf16")
    text = texts(comparison.render([one, two, three]))
    assert "The precision differs: fp16; bf16." in text and "gpu3 shared GPUs" in text
    assert "1698" in text and "849" in text
    assert comparison.names([one, one]) != ["gpu1", "gpu1"]
    assert " differs: " not in comparison.render([one, two])


def test_a_comparison_says_once_what_its_hosts_have_in_common():
    other = sample("gpu2", host=replace(HOST, name="gpu2", device="Another GPU", driver="999.9"))
    text = comparison.render([sample("gpu1"), other])
    assert text.count("Debian GNU/Linux 11") == 1, "the same on all hosts"
    assert text.count("Another GPU") == text.count("An invented GPU") == 1 and text.count("525.1") == 1
    assert "What differs" not in comparison.render([sample("gpu1"), sample("gpu2")])


PAGES = {
    "bench": lambda: page.render(sample()), "rehearsal": lambda: page.render(sample(speed_comparable=False)),
    "comparison": lambda: comparison.render([
        sample("gpu1"), sample("a-host-with-a-rather-long-name.example.org", 2, precision="bf16"),
        sample("gpu3", host=replace(HOST, name="gpu3", device="Another invented GPU with a longer name 80GB"))]),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_nothing_of_the_network(name):
    text = PAGES[name]()
    assert not re.search(r"<script|<link|<img|<iframe|@import|\bsrc=|\bhref=|https?:|//[a-z]", text)
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {"#hatch"}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone_and_a_desk(name, tmp_path):
    """With everything unfolded."""
    widths = [320, 360, 540, 768, 992, 1090, 1280]
    unfolded = PAGES[name]().replace("<details ", '<details open="open" ')
    for width, found in zip(widths, measured(unfolded, widths, tmp_path)):
        assert found["folded"] == 0 < found["open"]
        assert found["width"] == width
        assert found["overflow"] <= 0 and found["sticking_out"] == [], width
        assert found["requests"] == []
        assert found["font"] >= 12
        assert len(found["bars"]) > 10
        assert max(bar[0] for bar in found["bars"]) > width * 0.1 and min(bar[1] for bar in found["bars"]) >= 10


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_shows_the_charts_and_folds_the_lists_behind_them(name, tmp_path):
    phone, desk = measured(PAGES[name](), [390, 1280], tmp_path)
    assert phone["tables"] == 0 and desk["tables"] >= 2, "a table's rows are lists on a phone"
    assert phone["folded"] == desk["folded"] + desk["open"], "all that is open on a desk is folded"
    assert desk["folded"] == 0 and phone["bars"] and len(phone["bars"]) == len(desk["bars"])


def test_the_browser_sees_what_is_wrong(tmp_path):
    text = page.render(sample()).replace("default-src", "unknown-src")
    wrong = text.replace("<footer>",
                         '<div style="width:900px">x</div><img src="http://127.0.0.1:9/x.png" alt=""/><footer>')
    (found,) = measured(wrong, [360], tmp_path)
    assert found["overflow"] > 0 and found["sticking_out"] and found["requests"] == ["http://127.0.0.1:9/x.png"]


def test_nothing_from_the_results_is_markup_a_formula_or_a_command(tmp_path):
    evil = "=<img src=x>\x1b[2J\n|`[a](b)"
    bench = sample(evil, model=evil, precision=evil, made=evil, command=evil, job_file=evil, job={evil: evil},
                   left_out=evil, definitions={evil: evil}, versions={evil: evil},
                   configurations=(row(Sharding(0)), Row("none", "cpu", "none", (failed("failed", evil),))))
    page.write_shown(bench, tmp_path / "results.json")
    rendered = {path.suffix: path.read_text() for path in tmp_path.iterdir()}
    assert "<img" not in rendered[".html"] + comparison.render([bench, bench])
    assert "\n=" not in rendered[".csv"] and ",=" not in rendered[".csv"]
    plain = re.sub(r"`[^`]*`", "", rendered[".md"].replace("\\`", ""))  # without code
    assert r"\<img" in plain and "<img" not in plain.replace("\\<", "")
    assert all(c.isprintable() or c == "\n" for text in rendered.values() for c in text)
    assert all(line.isprintable() for line in tables.as_text(bench).split("\n"))


@pytest.mark.parametrize(("gpus", "words"), [(2, "24 GiB of its GPU, as if the GPU were that small."), (0, "24 GiB.")])
def test_a_cap_is_of_a_gpu_only_where_there_is_one(gpus, words):
    bench = sample()
    capped = replace(bench, settings=replace(bench.settings, cap_gib=24), host=replace(bench.host, gpus=gpus))
    assert f"Each rank was limited to {words}" in tables.notes(capped)
