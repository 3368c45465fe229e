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


def test_what_was_measured_was_predicted(scale_docs):
    """But for a case of torch's own DDP, which debzero does not use any more: the page says so."""
    cases = list(scale_docs.gpu_cases())
    assert {case[:5] for case in cases if not case.is_close} == {
        ("article-2-deepspeed.json", scale_docs.LARGE, 0, 2, 8)}
    kinds = {(case.source, case.label) for case in cases if not case.fits_constant}
    assert len(kinds) >= 5 and ("gpus-4.json", "plain DDP") in kinds
    assert ("gpus-2.json", "ZeRO-3 of debzero") in kinds and ("gpus-2.json", "ZeRO-2 of debzero") in kinds


def test_launching_takes_what_it_took(scale_docs, monkeypatch):
    """Each constant lies within what the rows say that it fits; one row alone says it."""
    from debzero.plan import rates

    said = {}
    for case in scale_docs.gpu_cases():
        if not case.recorded:
            monkeypatch.setattr(rates, "launching", lambda *_: 0.0)
            idle = case.predicted()
            monkeypatch.setattr(rates, "launching", lambda *_: 1e-3)
            kind = case.tensor, case.pipeline, case.stage, case.favour if case.stage == 3 else ""
            said.setdefault(kind, []).append((case.measured - idle) / (case.predicted() - idle) * 1e-3)
    monkeypatch.undo()
    for (tensor, pipeline, stage, favour), found in said.items():
        constant = rates.launching(scale_docs.Layout(1, tensor, pipeline), stage, favour)
        assert min(found) * 0.99 <= constant <= max(found) * 1.01, (stage, tensor, pipeline)
        if len(found) == 1:
            assert constant == pytest.approx(found[0], rel=0.01)


def test_the_models_have_so_many_parameters(scale_docs):
    from debzero.job.schema import Job
    from debzero.plan.model_shapes import Shapes

    for model, count in scale_docs.COUNTS.items():
        job = Job.model_validate({"model": model, "task": scale_docs.TASKS[model], "output": "out", "train": {},
                                  "data": {"dataset": "rows.csv", "text": ["text"], "label": "label"}})
        counts = Shapes(job, "job.yml", None).counts
        assert (counts.total, counts.layer_tensors) == (count, scale_docs.TENSORS[model])
        assert counts.total - counts.layers == scale_docs.ROOTS[model]
