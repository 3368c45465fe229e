"""Properties that hold for all numbers: the batch, the sampler, the learning rate, the data set's split."""
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from debzero.data import debian_sections
from debzero.data.sampler import EpochSampler, held_out_batches
from debzero.job.batch import BatchError, divisors, split
from debzero.train.engine import rate_at

small = st.integers(1, 64)


@given(st.integers(1, 4096), st.one_of(st.just("auto"), small), st.integers(1, 16),
       st.one_of(st.none(), st.integers(1, 16)))
def test_a_batch_holds_exactly_or_says_what_would(total, micro, ranks, accumulation):
    try:
        batch = split(total, micro, ranks, accumulation)
    except BatchError as error:
        assert error.key and error.reason and error.fix
    else:
        assert batch.micro * batch.accumulation * batch.ranks == total
        assert micro in ("auto", batch.micro)
        assert accumulation in (None, batch.accumulation)


@pytest.mark.parametrize(("arguments", "reason"), [
    ((64, 24, 1), "global batch 64 / 1 rank / micro-batch 24 = 2.67 accumulation steps"),
    ((65, "auto", 3), "65 samples cannot be divided equally among 3 ranks (65 / 3 = 21.67)"),
    ((64, 32, 1, 1), "micro-batch 32 x 1 accumulation step x 1 rank = 32, not 64"),
    ((8, "auto", 1, 3), "8 / 1 rank / 3 accumulation steps = 2.67, not a whole micro-batch")])
def test_what_does_not_fit_is_explained_in_numbers(arguments, reason):
    with pytest.raises(BatchError) as caught:
        split(*arguments)
    assert reason in caught.value.reason


@given(st.integers(1, 5000))
def test_divisors_are_all_that_divide_in_order(count):
    assert divisors(count) == [size for size in range(1, count + 1) if count % size == 0]


def lengths_of(samples, seed=0):
    """Tokens of each sample, of all sorts."""
    return np.random.default_rng(seed).integers(1, 129, samples, dtype=np.int32)


def dealt(lengths, micro, accumulation, ranks, epoch=0, start=0, bucketed=True):
    """Per step: its size, and each rank's parts."""
    batch = split(micro * accumulation * ranks, micro, ranks)
    sides = [list(EpochSampler(lengths, batch, rank, 3, bucketed).epoch(epoch, start)) for rank in range(ranks)]
    assert len({len(side) for side in sides}) == 1 and len(sides[0]) == len(EpochSampler(lengths, batch, 0, 3,
                                                                                         bucketed)) - start
    assert all(len({size for size, _ in step}) == 1 for step in zip(*sides))
    return [(step[0][0], [parts for _, parts in step]) for step in zip(*sides)]


@given(st.integers(1, 300), st.integers(1, 4), st.integers(1, 4), st.integers(1, 8), st.integers(0, 5), st.booleans())
def test_an_epoch_deals_every_sample_once_and_the_same_steps_to_all(samples, ranks, accumulation, micro, epoch,
                                                                    bucketed):
    steps = dealt(lengths_of(samples), micro, accumulation, ranks, epoch, bucketed=bucketed)
    for size, sides in steps:
        assert all(len(parts) == accumulation and max(map(len, parts)) <= micro for parts in sides)
        assert sum(len(part) for parts in sides for part in parts) == size
    assert sorted(i for _, sides in steps for parts in sides for part in parts for i in part) == list(range(samples))
    assert [size for size, _ in steps[:-1]] == [micro * accumulation * ranks] * (len(steps) - 1)


def seen(steps):
    return [sorted(i for parts in sides for part in parts for i in part) for _, sides in steps]


@given(st.integers(2, 200), st.sampled_from([1, 2, 4, 8, 16]), st.data(), st.booleans())
def test_a_step_sees_the_same_samples_however_they_are_shared_out(samples, ranks, data, bucketed):
    accumulation = data.draw(st.sampled_from([n for n in (1, 2, 4, 8, 16) if ranks * n <= 16]))
    shared = dealt(lengths_of(samples), 16 // ranks // accumulation, accumulation, ranks, bucketed=bucketed)
    assert seen(shared) == seen(dealt(lengths_of(samples), 16, 1, 1, bucketed=bucketed))


@given(st.integers(1, 300), st.integers(0, 30), st.booleans())
def test_to_begin_at_a_step_is_to_skip_those_before(samples, start, bucketed):
    whole = dealt(lengths_of(samples), 4, 2, 2, bucketed=bucketed)
    start = min(start, len(whole))
    assert seen(dealt(lengths_of(samples), 4, 2, 2, start=start, bucketed=bucketed)) == seen(whole)[start:]


@pytest.mark.parametrize("bucketed", [True, False])
def test_epochs_differ_and_repeat(bucketed):
    first, second, again = (seen(dealt(lengths_of(100), 10, 1, 1, epoch, bucketed=bucketed)) for epoch in (0, 1, 0))
    assert first == again != second


@given(st.integers(640, 3000), st.integers(1, 4), st.integers(1, 4))
def test_bucketed_batches_are_of_one_length_and_their_parts_of_the_same_on_all_ranks(samples, ranks, accumulation):
    lengths = lengths_of(samples)

    def padding(bucketed):
        """How much longer than its samples each micro-batch is, and how much longer one rank's than another's, in whole
        steps."""
        steps = [sides for size, sides in dealt(lengths, 8, accumulation, ranks, bucketed=bucketed)
                 if size == 8 * accumulation * ranks]
        longest = np.array([[[lengths[part].max() for part in parts] for parts in sides] for sides in steps])
        means = np.array([[[lengths[part].mean() for part in parts] for parts in sides] for sides in steps])
        return (longest - means).mean(), (longest.max(1) - longest.min(1)).mean()

    (waste, apart), (unsorted, _) = padding(True), padding(False)
    assert waste < unsorted / 3
    assert apart <= 128 / 8  # the lengths spread over 128 tokens, and a part takes every rank-th of its slice of those


def test_the_order_of_bucketed_batches_tells_nothing_of_their_lengths():
    lengths = lengths_of(3200)
    means = [lengths[ids].mean() for ids in seen(dealt(lengths, 32, 1, 1))]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


@given(st.lists(st.integers(1, 128), min_size=1, max_size=100), st.integers(1, 5), st.integers(1, 9))
def test_evaluation_loses_and_doubles_nobody(lengths, ranks, size):
    shares = [list(held_out_batches(np.array(lengths), ranks, rank, size)) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1, "ZeRO-3 needs as many forward passes on each rank"
    assert sorted(i for share in shares for batch in share for i in batch) == list(range(len(lengths)))


@given(st.integers(1, 500), st.floats(0, 0.9))
def test_the_rate_rises_to_its_peak_and_falls_to_almost_nothing(steps, warmup):
    rates = [rate_at(step, steps, 1.0, warmup) for step in range(steps)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(1.0)
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert min(rates) > 0


def _dump(count=3000):
    names = [f"pkg{i}" for i in range(count)]
    return "".join(f"Package: {name}\nSource: src{i // 3}\nSection: {'net' if i % 3 else 'contrib/sound'}\n"
                   f"Description: does a thing numbered {i // 2}\n\n" for i, name in enumerate(names))


def test_debian_sections_are_the_same_from_the_same_packages_in_any_order():
    paragraphs = _dump().strip().split("\n\n")
    mixed = "\n\n".join(paragraphs[::-1]) + "\n"
    first = debian_sections.samples(io.BytesIO(_dump().encode()))
    assert first == debian_sections.samples(io.BytesIO(mixed.encode()))
    assert {s.label for s in first} == {"net", "sound"}
    assert 0.05 < np.mean([s.held_out for s in first]) < 0.2


def test_debian_sections_never_show_a_held_out_text_in_training():
    found = debian_sections.samples(io.BytesIO(_dump().encode()))
    texts = [s.text.lower() for s in found]
    assert len(texts) == len(set(texts))


def test_without_package_lists_the_fix_is_named():
    from debzero.base.errors import UserError

    with pytest.raises(UserError, match="apt-get update"):
        debian_sections.samples(io.BytesIO(_dump(50).encode()))
