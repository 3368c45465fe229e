"""Corrections change the text only where values change."""
import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from debzero.deepspeed_json.rewrite import rewritten

TEXT = """{
  // the tutorial's
  "optimizer": {"type": "AdamW", "params": {"lr": 3e-5, "betas": [0.90,0.999]}},   # AdamW
  "zero_optimization": {
      "stage": 2,
      "reduce_bucket_size": 5e8,  // half of the default
      /* of older
         releases */
      "cpu_offload": true,        // to the host
      "overlap_comm": false
  },

  "gradient_clipping": 1.0
}
"""


def config():
    return {"optimizer": {"type": "AdamW", "params": {"lr": 3e-5, "betas": [0.9, 0.999]}},
            "zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8, "cpu_offload": True, "overlap_comm": False},
            "gradient_clipping": 1.0}


def test_the_same_values_are_the_same_text():
    assert rewritten(TEXT, config()) == TEXT


def test_a_removed_key_takes_its_own_comments_along():
    new = config()
    del new["zero_optimization"]["cpu_offload"]
    start, end = TEXT.index("      /* of older"), TEXT.index('      "overlap_comm"')
    assert rewritten(TEXT, new) == TEXT[:start] + TEXT[end:]


def test_the_last_key_takes_its_comma_along():
    new = config()
    del new["zero_optimization"]["overlap_comm"]
    expected = TEXT.replace('true,        // to the host\n      "overlap_comm": false', "true        // to the host")
    assert rewritten(TEXT, new) == expected


def test_other_values_and_new_keys_come_in_the_files_layout_and_numbers_as_they_stood():
    new = config()
    zero = new["zero_optimization"]
    new["zero_optimization"] = {"stage": 3, "reduce_bucket_size": 5e8, "offload_optimizer": {"device": "cpu"},
                                "overlap_comm": False, "allgather_bucket_size": zero["reduce_bucket_size"]}
    text = rewritten(TEXT, new)
    assert '      "offload_optimizer": {"device": "cpu"},\n      "overlap_comm": false,\n' in text
    assert '      "allgather_bucket_size": 5e8\n  },\n' in text and '"stage": 3,\n' in text and "3e-5" in text
    assert "// half of the default" in text and "[0.90,0.999]" in text


@pytest.mark.parametrize(("text", "new", "expected"), [
    ('{"a": 1, "b": 1e3}', {"b": 1000.0}, '{"b": 1e3}'), ('{"a": 1, "b": 2}', {"a": 1}, '{"a": 1}'),
    ('{"a": 1}', {"a": 1, "b": 2}, '{"a": 1, "b": 2}'), ("{}", {"a": 1}, '{ "a": 1}'), ('{"a": 1}', {}, "{}"),
    ('{"a": "5"}\n', {"a": 5}, '{"a": 5}\n'), ('{"a":1,"b":2,"c":3}', {"a": 1, "c": 3}, '{"a":1, "c":3}'),
    ("{a: 1, b: 2,}", {"a": 1}, "{a: 1}")])
def test_one_line_stays_one_line(text, new, expected):
    assert rewritten(text, new) in (expected, expected.replace("{ ", "{"))


def test_line_ends_of_windows_stay():
    text = TEXT.replace("\n", "\r\n")
    new = config()
    del new["zero_optimization"]["cpu_offload"]
    written = rewritten(text, new)
    assert "cpu_offload" not in written and written.count("\n") == written.count("\r\n")


@pytest.mark.parametrize("text", ["", "[1", '{"a": }', "{a: some words\n}", '{"a" 1}'])
def test_what_it_cannot_read_it_leaves(text):
    assert rewritten(text, {"b": 1}) is None


values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner,
                                                                                  max_size=4), max_leaves=12)


objects = st.dictionaries(st.text(max_size=3), values, max_size=5)


@given(objects, objects, st.sampled_from([None, 0, 2, "\t"]), st.data())
def test_whatever_is_written_is_read_as_meant(old, new, indent, data):
    mixed = copy.deepcopy({**old, **new})
    for key in data.draw(st.lists(st.sampled_from(sorted(mixed)))) if mixed else []:
        mixed.pop(key, None)
    text = json.dumps(old, indent=indent)
    assert rewritten(text, copy.deepcopy(old)) == text
    assert json.dumps(json.loads(rewritten(text, mixed))) == json.dumps(mixed)
