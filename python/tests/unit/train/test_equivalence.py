"""However a job is divided over ranks, it computes the same: losses and weights of tiny models over 50 steps, in fp32
and without dropout, beside those of plain data parallelism on two ranks. And a fault that is planted shows."""
import pytest
from layouts import FAMILIES, LAYOUTS, TOO_SHALLOW, Trained, same, train

QUICK = {("bert", "zero2"), ("bert", "native3"), ("bert", "tensor2"), ("bert", "pipeline2")}
# The rest takes minutes, and `make test-long` runs it.
SLOW = {("bert", "zero1"), ("bert", "zero3"), ("gpt2", "native3"), ("t5", "native3"), ("bert", "pipeline2 x data2"),
        ("gpt2", "pipeline2 x tensor2"), ("t5", "tensor2 x data2"), ("t5", "pipeline2 x data2, zero1"),
        ("t5", "pipeline3")}


def mark(family, layout) -> tuple:
    if (family, layout) in QUICK:
        return ()
    return (pytest.mark.slow,) if (family, layout) in SLOW else (pytest.mark.long,)


@pytest.fixture(scope="session")
def runs(trained):
    """A family's training in a layout, done when first asked for."""
    made = {}

    def run(family, layout) -> Trained:
        if (family, layout) not in made:
            made[family, layout] = train(trained, family, layout)
        return made[family, layout]

    return run


def cases() -> list:
    return [pytest.param(family, layout, marks=mark(family, layout)) for family in FAMILIES for layout in LAYOUTS
            if layout != "ddp" and (family, layout) not in TOO_SHALLOW]


@pytest.mark.parametrize(("family", "layout"), cases())
def test_a_layout_computes_what_plain_data_parallelism_does(runs, family, layout):
    plain = runs(family, "ddp")
    assert plain.losses[-5:].mean() < 0.8 * plain.losses[:5].mean(), "it must have learned something"
    divided = runs(family, layout)
    assert same(divided, plain)
    assert divided.scores == pytest.approx(plain.scores, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "layout", "fault"), [
    ("bert", "ddp", "gradient scaled twice"), ("bert", "ddp", "mask forgotten"),
    ("bert", "tensor2", "gradient summed twice"), ("bert", "pipeline2", "gradient scaled twice on the way"),
    ("bert", "pipeline2", "mask forgotten")])
def test_a_planted_fault_shows(trained, runs, family, layout, fault):
    assert not same(train(trained, family, layout, fault), runs(family, "ddp"))
