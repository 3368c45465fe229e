"""Where the trainer uses what an advisory is about: what the pinned release really does."""
from __future__ import annotations

import json

import pytest

from debzero.base.errors import UserError
from debzero.model.tokenizer import load_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture
def folder(tmp_path):
    """A BERT tokenizer, beside a file that is none of its business."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (model / "vocab.txt").write_text("\n".join([*SPECIAL, "own"]))
    (tmp_path / "secret").write_text("\n".join([*SPECIAL, "password"]))
    return model


def configured(folder, **keys):
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **keys}))
    return load_tokenizer(str(folder), list, 8)


@pytest.mark.parametrize("keys", [{"vocab_file": "{}/secret"}, {"vocab_file": "{}/model/../secret"},
                                  {"tokenizer_file": "/proc/self/environ"}, {"init_inputs": ["{}/secret"]}])
def test_a_model_cannot_name_files_of_the_host(folder, keys):
    """transformers#46279: the named file would become the vocabulary, and be saved with the trained model."""
    filled = json.loads(json.dumps(keys).replace("{}", str(folder.parent)))
    with pytest.raises(UserError, match=f"tokenizer_config.json .*{next(iter(keys))}"):
        configured(folder, **filled)


def test_a_model_may_name_its_own_files_and_where_it_came_from(folder):
    tokenizer = configured(folder, vocab_file=str(folder / "vocab.txt"), name_or_path=str(folder.parent),
                           special_tokens_map_file=str(folder.parent / "secret"), tokenizer_file=None,
                           chat_template="x" * 5000, unk_token="[UNK]")
    assert "own" in tokenizer.get_vocab() and "password" not in tokenizer.get_vocab()


def test_a_tokenizer_is_saved_inside_its_folder(tmp_path):
    """CVE-2026-9856: later releases write each chat template to a file with the name that the tokenizer chose."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")), unk_token="a")
    tokenizer.chat_template = {"default": "x", "../../outside": "y", f"{tmp_path}/absolute": "z"}
    tokenizer.save_pretrained(tmp_path / "model" / "tokenizer")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["tokenizer"]
