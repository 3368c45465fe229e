"""Where the trainer uses what an advisory is about: what the pinned release really does."""
from __future__ import annotations


def test_a_tokenizer_is_saved_inside_its_folder(tmp_path):
    """CVE-2026-9856: later releases write each chat template to a file with the name that the tokenizer chose."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")), unk_token="a")
    tokenizer.chat_template = {"default": "x", "../../outside": "y", f"{tmp_path}/absolute": "z"}
    tokenizer.save_pretrained(tmp_path / "model" / "tokenizer")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["tokenizer"]
