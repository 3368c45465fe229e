"""docs/scale.md is what the code predicts and what was measured."""
import sys

import pytest

from debzero.base.stack import stack
from debzero.deepspeed_json.releases import here


@pytest.fixture
def scale_docs(monkeypatch):
    from planning import BENCHMARKS

    monkeypatch.syspath_prepend(BENCHMARKS.parents[1] / "python")
    import scale_docs

    return scale_docs


@pytest.mark.skipif(here() != (stack().deepspeed, stack().torch), reason="the page is that of the pinned releases")
def test_the_page_is_what_the_code_predicts(scale_docs):
    assert scale_docs.PAGE.read_text() == scale_docs.page(), "docs/scale.md is stale: run `make docs`"


def test_a_stale_page_is_named_and_written_anew(scale_docs, tmp_path, monkeypatch, capsys):
    page = tmp_path / "scale.md"
    monkeypatch.setattr(scale_docs, "ROOT", tmp_path)
    monkeypatch.setattr(scale_docs, "PAGE", page)
    monkeypatch.setattr(scale_docs, "page", lambda: "new\n")
    monkeypatch.setattr(sys, "argv", ["scale_docs.py", "--check"])
    assert scale_docs.main() == 1 and "scale.md is stale" in capsys.readouterr().err and not page.exists()
    monkeypatch.setattr(sys, "argv", ["scale_docs.py"])
    assert scale_docs.main() == 0 and page.read_text() == "new\n"


def test_most_of_what_was_measured_was_predicted(scale_docs):
    """What sets a constant does not count; what is off is explained on the page."""
    ratios = {(file, stage, ranks, micro): scale_docs.gpu_step(stage, ranks, micro, not stage and micro == 64)
              * speed / 64 for file, stage, ranks, micro, speed, note in scale_docs.gpu_cases() if not note}
    off = {case for case, ratio in ratios.items() if abs(ratio - 1) > 0.25}
    assert len(ratios) >= 9 and off == {("bert-large-1.json", 1, 1, 64), ("article-2-gpus.json", 0, 2, 8)}
