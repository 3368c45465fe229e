"""ROUGE-L as in its paper."""
import itertools

from hypothesis import given
from hypothesis import strategies as st

from debzero.model.rouge import common, rouge_l, words


def test_the_papers_own_example():
    """Lin 2004, section 3.1: `police the gunman killed` and `the gunman kill police` against `police killed the
    gunman` have two and two words in its order; with beta 1 that is 1/2 for both. Section 3.1 gives 3/4 to
    `police kill the gunman`."""
    target = "police killed the gunman"
    assert rouge_l("police kill the gunman", target) == 3 / 4
    assert rouge_l("the gunman kill police", target) == 1 / 2


def test_the_f1_of_lengths_that_differ():
    assert rouge_l("a b", "a x b y") == 2 * (2 / 2) * (2 / 4) / (2 / 2 + 2 / 4)


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_the_longest_common_subsequence_is_the_longest(first, second):
    def has(part):
        rest = iter(second)
        return all(word in rest for word in part)

    parts = itertools.chain.from_iterable(itertools.combinations(first, size) for size in range(len(first) + 1))
    assert common(first, second) == max(len(part) for part in parts if has(part))


def test_words_are_those_of_any_language():
    assert words("Don't panic: 3.5 Ärger!") == ["don", "t", "panic", "3", "5", "ärger"]
    assert words("我爱你。") == ["我", "爱", "你"] and words("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]


def test_nothing_is_like_nothing_alone():
    assert (rouge_l("", ""), rouge_l("", "a"), rouge_l("...", "a"), rouge_l("!", "?")) == (1, 0, 0, 1)
