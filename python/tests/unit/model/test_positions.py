"""How many tokens a model takes: what check, plan and train say is what the model does."""
import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from support import JOB, changed

from debzero.base.errors import InputError
from debzero.check.checks import check
from debzero.job.schema import Job
from debzero.model.positions import AFTER_PADDING, position_problems, usable_positions
from debzero.model.tokenizer import load_tokenizer

SMALL = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
         "max_position_embeddings": 16, "attention_window": 4, "entity_vocab_size": 5, "languages": ["en_XX"],
         "default_language": "en_XX", "emb_layer_norm_before": True, "token_dropout": False, "mask_token_id": 4,
         "dim": 8, "hidden_dim": 8, "n_layers": 1, "n_heads": 2, "d_model": 8, "encoder_layers": 1,
         "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8,
         "decoder_ffn_dim": 8, "embedding_size": 8}
DOCUMENTS = {"layoutlmv3", "lilt"}  # they also need boxes or images


def config(kind, **changes):
    settings = transformers.CONFIG_MAPPING[kind]()
    known = {key: value for key, value in SMALL.items() if hasattr(settings, key) and key not in settings.attribute_map}
    return transformers.CONFIG_MAPPING[kind](**{**known, "pad_token_id": 1, **changes})


@pytest.mark.parametrize("kind", [*sorted(AFTER_PADDING - DOCUMENTS), "bert", "electra", "distilbert", "gpt2", "opt",
                                  "bart", "deberta-v2", "nystromformer"])
def test_so_many_tokens_run_and_one_more_does_not(kind):
    own = config(kind, n_positions=16, n_embd=8, n_head=2, n_layer=1) if kind == "gpt2" else config(kind)
    own._attn_implementation = "eager"
    longest = usable_positions(own)
    model = transformers.AutoModel.from_config(own).eval()
    with torch.no_grad():
        model(input_ids=torch.full((1, longest), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, longest + (4 if kind == "longformer" else 1)), 5))


def test_every_model_type_that_counts_after_its_padding_token_is_known():
    """By transformers' own code, of the types that a task's Auto class takes."""
    models = Path(transformers.__file__).parent / "models"
    tasks = {kind for names in (transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
                                transformers.MODEL_FOR_CAUSAL_LM_MAPPING) for kind in
             (settings.model_type for settings in names)}
    found = set()
    for file in models.glob("*/modeling_*.py"):
        text = file.read_text()
        if "def create_position_ids_from_input_ids" in text and not re.match("modeling_(tf|flax)_", file.name):
            found |= {kind for kind in tasks if kind.replace("-", "_") == file.parent.name}
    assert found and found - {"trocr"} <= AFTER_PADDING, "trocr's positions are sinusoids, computed as needed"


@pytest.mark.parametrize(("kind", "changes", "expected"), [
    ("roberta", {"max_position_embeddings": 514}, 512), ("roberta", {"pad_token_id": 0}, 15), ("t5", {}, None),
    ("deberta-v2", {"position_biased_input": False}, None), ("led", {}, 16384), ("mpt", {}, 2048),
    ("esm", {"position_embedding_type": "rotary"}, None), ("mpnet", {"pad_token_id": 0}, 14)])
def test_the_familys_offset_counts(kind, changes, expected):
    assert usable_positions(config(kind, **changes)) == expected


def test_the_reason_says_what_the_family_never_uses():
    job = Job.model_validate(changed(JOB, {"model": "roberta-base", "data.max_length": 514}))
    (problem,) = position_problems(job, "job.yml", config("roberta", max_position_embeddings=514))
    assert "512 positions (max_position_embeddings is 514" in problem.reason and "at most 512" in problem.fix


def test_reformer_takes_samples_of_one_length():
    own = transformers.ReformerConfig(axial_pos_shape=[4, 8])
    for changes, right in (({}, False), ({"data.max_length": 32}, False),
                           ({"data.max_length": 32, "data.padding": "max_length"}, True)):
        assert (position_problems(Job.model_validate(changed(JOB, changes)), "job.yml", own) == []) is right


def test_reformer_without_axial_positions_fills_its_chunks():
    own = transformers.ReformerConfig(axial_pos_embds=False, attn_layers=["local", "lsh"], local_attn_chunk_length=8,
                                      lsh_attn_chunk_length=12)
    for changes, right in (({}, False), ({"data.max_length": 8}, True), ({"data.max_length": 24}, False),
                           ({"data.padding": "max_length"}, False),
                           ({"data.max_length": 48, "data.padding": "max_length"}, True)):
        assert (position_problems(Job.model_validate(changed(JOB, changes)), "job.yml", own) == []) is right


def test_check_knows_the_positions_of_a_folder_and_of_a_cached_model(bench, monkeypatch):
    from huggingface_hub import constants

    own = config("roberta", max_position_embeddings=34)
    transformers.RobertaModel(own).save_pretrained(bench.folder / "roberta")
    tokens = load_tokenizer({"type": "roberta", "vocab_size": 30}, list, 16)
    tokens.pad_token = "[UNK]"  # number 1, as RoBERTa's
    tokens.save_pretrained(bench.folder / "roberta")
    hub = bench.folder / "hub"
    snapshot = hub / "models--someone--small" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (hub / "models--someone--small" / "refs").mkdir()
    (hub / "models--someone--small" / "refs" / "main").write_text("0123abc")
    (snapshot / "config.json").write_text(json.dumps(own.to_dict()))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    for model in ("roberta", "someone/small"):
        with pytest.raises(InputError) as caught:
            check(bench.job(model=model, data__max_length=34))
        assert [(p.key, p.fix) for p in caught.value.problems] == [
            ("data.max_length", "use at most 32, or a model with more positions")]
        check(bench.job(model=model, data__max_length=32))
