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
    """What sets a constant does not count; the page explains what is off."""
    cases = [case for case in scale_docs.gpu_cases() if not case.sets_constant]
    off = {case[:5] for case in cases if not case.is_close}
    assert len(cases) >= 16 and off == {
        ("bert-large-1.json", scale_docs.LARGE, 1, 1, 64), ("article-2-gpus.json", scale_docs.LARGE, 0, 2, 8),
        (scale_docs.SERIES, scale_docs.LARGE, 0, 2, 64), (scale_docs.SERIES, scale_docs.XL, 3, 2, 8)}


def test_the_models_have_so_many_parameters(scale_docs):
    from debzero.job.schema import Job
    from debzero.plan.model_shapes import Shapes

    for model, count in scale_docs.COUNTS.items():
        job = Job.model_validate({"model": model, "task": scale_docs.TASKS[model], "output": "out", "train": {},
                                  "data": {"dataset": "rows.csv", "text": ["text"], "label": "label"}})
        assert Shapes(job, "job.yml", None).counts.total == count
