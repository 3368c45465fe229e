"""The tables and pages of `debzero bench`: every figure is in them, and a browser shows them well at any width."""
import csv
import io
import re
import xml.etree.ElementTree as ElementTree

import pytest
from bench_results import failed, sample
from browser import look

from debzero.base.text import size_text
from debzero.bench import comparison, page, results
from debzero.measure.facts import DEFINITIONS


def texts(page_text):
    return " ".join(" ".join(ElementTree.fromstring(page_text.split("\n", 1)[1]).itertext()).split())


def test_the_tables_hold_every_row_and_every_figure_of_the_results():
    made = sample()
    markdown, lines = results.as_markdown(made), list(csv.DictReader(io.StringIO(results.as_csv(made))))
    assert [line["configuration"] for line in lines] == [row["name"] for row in made["configurations"]]
    for row, line in zip(made["configurations"], lines):
        if row["summary"]:
            assert int(line["memory_bytes"]) == row["summary"]["memory_bytes"] and line["reason"] == ""
            assert f"| {row['label']} | {size_text(row['summary']['memory_bytes'])} |" in markdown
        else:
            assert line["memory_bytes"] == "" and line["reason"] == results.reason(row)
    assert all(meaning in markdown for meaning in DEFINITIONS.values())


def test_the_page_shows_the_facts():
    made = sample()
    text = texts(page.render(made))
    for row in made["configurations"]:
        assert row["label"] in text and row["about"] in text
        assert all(cell in text for cell in results.cells(made, row) or [results.reason(row)])
    facts = [*made["versions"].values(), *made["definitions"].values(), made["host"]["driver"], made["command"]]
    assert [fact for fact in [*facts, "32 GB+", "defines neither"] if fact not in text] == []
    assert "ZeRO-2 + CPU needs the least memory: 2.51 GiB a rank, 66% less than the baseline, at 5% of its speed." in text
    assert "not comparable" not in text
    assert "+4.0%" in text and "temporary" in text
    no_plan = sample()
    for row in no_plan["configurations"]:
        row["predicted"] = None
    assert "Predicted" not in page.render(no_plan)


def test_a_rehearsal_says_that_its_speed_is_not_comparable():
    made = sample(speed_comparable=False)
    made["settings"]["cap_gib"] = 24
    made["host"]["gpus"] = 1
    text = texts(page.render(made))
    assert "2 ranks shared 1 GPU" in text and "could take 24 GiB" in text and "of its speed" not in text and "is the fastest" not in text
    assert "speed is not comparable" in results.as_markdown(made) and "speed is not comparable" in results.as_text(made)


def test_a_failed_repeat_among_good_ones_is_told_and_its_row_has_its_figures():
    made = sample()
    row = next(row for row in made["configurations"] if row["name"] == "zero1")
    row["runs"][-1] = failed("failed", "the loss is not a number any more")
    row["summary"] = results.summarize(row["runs"])
    for text in (texts(page.render(made)), results.as_markdown(made), results.as_text(made)):
        assert "ZeRO-1: its figures are those of 2 of 3 runs; then failed: the loss is not a number any more." in text
    without = texts(page.render(made)).partition("Without a result: ")[2].split(".")[0]
    assert "ZeRO-3 + CPU" in without and "ZeRO-1" not in without


def test_hostile_texts_stay_texts():
    made = sample("<script>alert(1)</script>", model="<b>x</b>&", command="debzero bench '<i>'")
    assert "<script>alert(1)</script>" in texts(page.render(made))
    assert "<script" not in page.render(made) and "<b>x</b>" not in page.render(made)


def test_a_comparison_shows_every_host_and_what_differs():
    one, two, three = sample("gpu1"), sample("gpu2", 2), sample("gpu3", speed_comparable=False, precision="bf16")
    text = texts(comparison.render([one, two, three]))
    assert "Not the same precision: fp16; bf16." in text and "gpu3 shared GPUs" in text
    assert "1698" in text and "849" in text
    assert comparison.names([one, one]) != ["gpu1", "gpu1"]
    assert "Not the same" not in comparison.render([one, two])


PAGES = {
    "bench": lambda: page.render(sample()), "rehearsal": lambda: page.render(sample(speed_comparable=False)),
    "comparison": lambda: comparison.render([sample("gpu1"), sample("a-host-with-a-rather-long-name.example.org", 2),
                                             sample("gpu3")]),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_nothing_of_the_network(name):
    text = PAGES[name]()
    assert not re.search(r"<script|<link|<img|<iframe|@import|\bsrc=|\bhref=|https?:|//[a-z]", text)
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {"#hatch"}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone_and_a_desk(name, tmp_path):
    widths = [320, 360, 540, 768, 992, 1090, 1280]
    for width, found in zip(widths, look(PAGES[name](), widths, tmp_path)):
        assert found["width"] == width
        assert found["overflow"] <= 0 and found["sticking_out"] == [], width
        assert found["requests"] == []
        assert found["font"] >= 12
        assert len(found["bars"]) > 10
        assert max(bar[0] for bar in found["bars"]) > width * 0.1 and min(bar[1] for bar in found["bars"]) >= 10


def test_the_browser_sees_what_is_wrong(tmp_path):
    text = page.render(sample()).replace("default-src", "unknown-src")
    wrong = text.replace("<footer>",
                         '<div style="width:900px">x</div><img src="http://127.0.0.1:9/x.png" alt=""/><footer>')
    (found,) = look(wrong, [360], tmp_path)
    assert found["overflow"] > 0 and found["sticking_out"] and found["requests"] == ["http://127.0.0.1:9/x.png"]
