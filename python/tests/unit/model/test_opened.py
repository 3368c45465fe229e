"""A model folder whose parts do not belong together is refused by check; what check lets through trains."""
import json
import re
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import JOB, changed
from tokenizers import Tokenizer, models, processors
from transformers import BertConfig, PreTrainedTokenizerFast

from debzero.base.errors import InputError, UserError
from debzero.check.checks import examine
from debzero.job.schema import Job
from debzero.model import build, inputs
from debzero.model.opened import opened_problems
from debzero.model.tokenizer import load_tokenizer
from debzero.model.tokens import class_token, refuse_ends

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "the", "saw"]
SIZES = {"vocab_size": len(WORDS), "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 8, "max_position_embeddings": 32}
GPT2 = {"vocab_size": len(WORDS), "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32}
BART = {"vocab_size": len(WORDS), "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8,
        "decoder_ffn_dim": 8, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 0,
        "eos_token_id": 3, "bos_token_id": 2, "decoder_start_token_id": 3, "max_position_embeddings": 32}
T5 = {"vocab_size": len(WORDS), "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}


def tokenizer(words=WORDS, ends=True, **special):
    pieces = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    if ends:
        pieces.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
             "bos_token": "[CLS]", "eos_token": "[SEP]", **special}
    return PreTrainedTokenizerFast(tokenizer_object=pieces, **{key: name for key, name in names.items() if name})


def saved(folder, model, tokens=None, **more):
    model.save_pretrained(folder, **more)
    (tokens or tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A BERT with a head for two classes, whole; and the same in shards."""
    folder = tmp_path_factory.mktemp("whole")
    bert = transformers.BertForSequenceClassification(BertConfig(**SIZES))
    return saved(folder / "one", bert), saved(folder / "shards", bert, max_shard_size="2KB")


def found(folder, task="classification", labels=None, **changes):
    job = Job.model_validate(changed(JOB, {"model": str(folder), "task": task,
                                           **{key.replace("__", "."): value for key, value in changes.items()}}))
    return opened_problems(job, "job.yml", folder, labels)


def settings(name="config.json", without=(), **changes):
    def damage(folder):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({key: value for key, value in {**values, **changes}.items()
                                               if key not in without}))
    return damage


def tensors(change):
    def damage(folder):
        values = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        change(values)
        save_file(values, folder / "model.safetensors", {"format": "pt"})
    return damage


def bare(values):
    for name in list(values):
        values[name.replace("bert.", "")] = values.pop(name)


def halved(values):
    for name in list(values):
        values[name] = values[name].to(torch.int8)


def overlapping(folder):
    """Two tensors in one place: as many bytes as the header says in all, but not where it says."""
    content = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]
    header[names[0]]["data_offsets"] = header[names[1]]["data_offsets"]
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def index(change):
    def damage(folder):
        values = json.loads((folder / "model.safetensors.index.json").read_text())
        change(values)
        (folder / "model.safetensors.index.json").write_text(json.dumps(values))
    return damage


def words(*more, **special):
    return lambda folder: tokenizer(*more, **special).save_pretrained(folder)


WHOLE = {
    "no layers": (settings(num_hidden_layers=0), "num_hidden_layers that must be a whole number"),
    "text as a size": (settings(hidden_size="8"), "hidden_size that must be a whole number"),
    "share above 1": (settings(hidden_dropout_prob=7), "hidden_dropout_prob that must be a number from 0 to 1"),
    "too many": (settings(num_hidden_layers=10**9), "the most that is built"),
    "heads do not divide": (settings(num_attention_heads=3), "cannot build it"),
    "more layers than weights": (settings(num_hidden_layers=2), "lack 16 of the 41 parameters"),
    "other width": (settings(hidden_size=16), "word_embeddings.weight as 8 x 8, where its config.json makes it 8 x 16"),
    "another type": (settings(model_type="gpt2", **GPT2), "of the gpt2 model that its config.json describes"),
    "no type": (settings(without=["model_type"]), "names no model_type"),
    "unknown type": (settings(model_type="bertzilla"), "knows no models of the type 'bertzilla'"),
    "type as a number": (settings(model_type=7), "knows no models of the type '7'"),
    "no model for the task": (settings(model_type="vit"), "vit models cannot do the task classification"),
    "classes without numbers": (settings(id2label={"a": "x"}), "cannot read its config.json: ValueError"),
    "type of numbers": (settings(torch_dtype="int3"), "cannot read its config.json: AttributeError"),
    "quantised by its settings": (settings(quantization_config={"quant_method": "gptq"}), "quantised (quantization_c"),
    "quantised by its weights": (tensors(halved), "quantised (bert.embeddings.word_embeddings.weight is I8)"),
    "names of a bare model": (tensors(bare), "named as those of a bert model without a head"),
    "adapter within": (tensors(lambda values: values.update({"a.lora_A.weight": torch.zeros(2)})), "not merged"),
    "no configuration": (lambda folder: (folder / "config.json").write_text("[1]"), "names no model_type"),
    "pointer to the configuration": (lambda folder: (folder / "config.json").write_text(
        "version https://git-lfs.github.com/spec/v1\n"), "config.json is a Git LFS pointer"),
    "pointer to the tokenizer": (lambda folder: (folder / "tokenizer.json").write_text(
        "version https://git-lfs.github.com/spec/v1\n"), "tokenizer.json is a Git LFS pointer"),
    "tensors in each other": (overlapping, "no whole safetensors file"),
    "no tokenizer": (lambda folder: [file.unlink() for file in folder.glob("*token*")], "has no tokenizer"),
    "half a tokenizer": (lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0", "model"'),
                         "its tokenizer (tokenizer.json) cannot be loaded"),
    "empty tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be loaded: "),
    "class of a tokenizer": (settings("tokenizer_config.json", tokenizer_class="Mine"), "Tokenizer class Mine"),
    "library of a tokenizer": (settings("tokenizer_config.json", tokenizer_class="FlaubertTokenizer"), "sacremoses"),
    "more tokens than rows": (words([*WORDS, "more"]), "tokens up to number 8, but the model's embedding holds 8"),
    "no special tokens": (words(ends=False, **dict.fromkeys(
        ("pad_token", "unk_token", "cls_token", "sep_token", "bos_token", "eos_token"))), "neither a padding nor"),
    "weights for other programs": (lambda folder: (folder / "model.safetensors").rename(folder / "model.onnx"),
        "as model.onnx, for programs that run a model"),
    "shards alone": (lambda folder: (folder / "model.safetensors").rename(
        folder / "model-00001-of-00001.safetensors"), "but neither model.safetensors nor model.safetensors.index.json"),
    "no room": (lambda folder: None, "9 tokens are more than the model's 8 positions"),
}
SHARDS = {
    "a tensor that is not there": (index(lambda values: values["weight_map"].update(
        {"more": "model-00001-of-00002.safetensors"})), "holds more, which it does not"),
    "no metadata": (index(lambda values: values.pop("metadata")), "has no metadata"),
    "shorter": (index(lambda values: values.update(weight_map={
        name: file for name, file in values["weight_map"].items() if "attention" not in name})), "lack 10 of the 25"),
    "a list": (index(lambda values: values.update(weight_map=["a"])), "has no weight_map"),
}


@pytest.mark.parametrize("case", [*WHOLE, *SHARDS])
def test_parts_that_do_not_belong_together_are_named(whole, tmp_path, case):
    damage, reason = {**WHOLE, **SHARDS}[case]
    folder = shutil.copytree(whole[case in SHARDS], tmp_path / "model")
    if "no room" in case:
        settings(max_position_embeddings=8)(folder)
        tensors(lambda values: values.update({"bert.embeddings.position_embeddings.weight": torch.zeros(8, 8)}))(folder)
    damage(folder)
    problems = found(folder, data__max_length=9)
    assert len(problems) == 1 and problems[0].severity == "error" and problems[0].fix
    assert reason in problems[0].reason


def test_whole_folders_pass_whatever_type_of_float_they_hold(whole, tmp_path):
    assert not found(whole[0]) and not found(whole[1])
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        folder = shutil.copytree(whole[0], tmp_path / str(kind))
        tensors(lambda values, kind=kind: values.update({name: tensor.to(kind) for name, tensor in values.items()}))(
            folder)
        assert not found(folder)


def test_a_head_for_other_classes_is_replaced_and_said(whole, tmp_path):
    (warning,) = found(whole[0], labels=["a", "b", "c"])
    assert warning.severity == "warning" and "2 rows) does not fit the data's 3 classes" in warning.reason
    settings(id2label={"0": "good", "1": "bad"})(folder := shutil.copytree(whole[0], tmp_path / "named"))
    (warning,) = found(folder, labels=["bad", "good"])
    assert warning.severity == "warning" and "in another order (good, bad; in the data bad, good)" in warning.reason
    (warning,) = found(folder, labels=["a", "b"])
    assert "by other names" in warning.reason
    assert not found(folder, labels=["good", "bad"]) and not found(whole[0], labels=["a", "b"])
    (warning,) = found(whole[0], task="regression", labels=["label"])
    assert "does not fit the task" in warning.reason
    settings(id2label={str(number): f"c{number}" for number in range(5)})(folder)
    (warning,) = found(folder, labels=["a", "b"])  # its names alone are wrong
    assert "as many classes as the data (2), but its config.json names 5 (c0, c1" in warning.reason
    (warning,) = found(folder)
    assert "2 rows) does not fit the 5 classes that its config.json names" in warning.reason
    assert "unless the data's classes fit it" in warning.reason


@pytest.mark.parametrize("place", [0, 1])
def test_only_the_head_is_new_where_it_does_not_fit(whole, bench, place):
    from support import plan_of

    resolved = plan_of(bench, model=str(whole[place]))
    tokens = load_tokenizer(str(whole[place]), list, 16)
    model = build.build(resolved, str(whole[place]), build.config(str(whole[place]), list("abc"), tokens), {})
    before = {name: tensor for file in whole[place].glob("*.safetensors") for name, tensor in load_file(file).items()}
    after = model.state_dict()
    assert after["classifier.weight"].shape == (3, 8) and 0 < after["classifier.weight"].abs().max() < 1
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if "classifier" not in name)


def test_a_shared_parameter_may_have_either_name(tmp_path):
    folder = saved(tmp_path / "gpt2", transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)))
    assert not found(folder, "causal-lm") and not found(folder)
    tensors(lambda values: values.update({"lm_head.weight": values.pop("transformer.wte.weight")}))(folder)
    assert not found(folder, "causal-lm")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded.transformer.wte.weight, load_file(folder / "model.safetensors")["lm_head.weight"])
    (problem,) = found(folder)
    assert "lack 1 of the 17 parameters of the gpt2 model" in problem.reason and "transformer.wte" in problem.reason


def test_a_language_model_without_its_head_is_a_warning(tmp_path):
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=1)
    (warning,) = found(saved(tmp_path / "llama", transformers.LlamaModel(config)), "causal-lm")
    assert warning.severity == "warning" and "predicts tokens" in warning.reason


@pytest.mark.parametrize(("task", "model", "tokens", "reason"), [
    ("causal-lm", "gpt2", {"eos_token": None, "sep_token": None}, "has no end-of-text token"),
    ("classification", "gpt2", {"pad_token": "[CLS]", "cls_token": None}, "pads with '[CLS]', which it also puts"),
    ("classification", "gpt2", {"pad_token": "[UNK]", "cls_token": None}, "pads with '[UNK]', which it also puts"),
    ("classification", "bart", {"ends": False}, "does not end texts with the model's end-of-text token"),
    ("text-to-text", "start", {}, "says decoder_start_token_id: 99, which is no token of 8")])
def test_special_tokens_suit_the_model_and_the_task(tmp_path, task, model, tokens, reason):
    made = {"gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)),
            "bart": lambda: transformers.BartForConditionalGeneration(transformers.BartConfig(**BART)),
            "start": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(
                **T5, decoder_start_token_id=99))}[model]()
    (problem,) = found(saved(tmp_path / "model", made, tokenizer(**tokens)), task)
    assert reason in problem.reason


def test_a_tokenizer_that_cannot_encode_is_named(whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"cat": 0, "[PAD]": 1})),
                            pad_token="[PAD]").save_pretrained(folder)
    (problem,) = found(folder)
    assert "its tokenizer cannot encode" in problem.reason and "unk_token" in problem.fix


def test_a_text_with_another_end_is_named_where_the_model_classifies_there(tmp_path):
    """transformers' BART would end with an error about the whole batch."""
    config = transformers.BartConfig(**BART)
    folder = saved(tmp_path / "bart", transformers.BartForConditionalGeneration(config))
    tokens = load_tokenizer(str(folder), list, 16)
    end = class_token(str(folder), tokens)
    assert end == 3 and class_token({"type": "bert"}, tokens) is None and not found(folder)
    for texts, named in ((["cat", "saw", ""], ""), (["cat", "the[SEP]saw", ""], "the token [SEP] 2 times")):
        ids = tokens(texts)["input_ids"]
        given = np.concatenate(ids), np.asarray(list(map(len, ids)), np.int32)
        if named:
            with pytest.raises(UserError, match=re.escape(named)):
                refuse_ends(tokens, end, *given)
        else:
            refuse_ends(tokens, end, *given)


@pytest.mark.parametrize(("kind", "expected"), [
    ("bert", ["input_ids", "token_type_ids", "attention_mask"]), ("distilbert", ["input_ids", "attention_mask"]),
    ("gpt2", ["input_ids", "attention_mask"]), ("xlm", ["input_ids", "attention_mask"]),
    ("xlnet", ["input_ids", "token_type_ids", "attention_mask"]), ("deberta-v2", ["input_ids", "attention_mask"]),
    ("fnet", ["input_ids", "token_type_ids"]), ("t5", ["input_ids", "attention_mask"])])
def test_a_model_gets_what_its_forward_takes(kind, expected):
    assert inputs.input_names(transformers.CONFIG_MAPPING[kind]()) == expected


def test_what_a_folders_tokenizer_makes_is_what_its_model_takes(tmp_path):
    """DistilBERT would fail at token types, and GPT-2 would add the embedding of token 0 to each."""
    names = ["input_ids", "token_type_ids", "attention_mask"]
    for kind, more in (("distilbert", {"dim": 8, "hidden_dim": 8, "n_heads": 2, "n_layers": 1}), ("gpt2", GPT2)):
        config = transformers.CONFIG_MAPPING[kind](**{"vocab_size": len(WORDS), **more})
        folder = saved(tmp_path / kind, transformers.AutoModel.from_config(config), tokenizer(model_input_names=names))
        assert not found(folder)
        load_tokenizer(str(folder), list, 16).save_pretrained(tmp_path / "again")
        again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
        assert set(again("cat")) == {"input_ids", "attention_mask"}


def test_check_knows_the_datas_classes(bench, whole, tmp_path):
    settings(id2label={"0": "good", "1": "bad"})(folder := shutil.copytree(whole[0], tmp_path / "named"))
    (warning,) = examine(bench.job(model=str(folder))).warnings
    assert (warning.key, warning.severity) == ("model", "warning")
    assert "by other names (good, bad; in the data animal" in warning.reason


def test_a_model_that_insists_on_kernels_is_refused_where_there_are_none(tmp_path):
    sizes = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "num_experts": 2,
             "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
    model = transformers.JambaForSequenceClassification(transformers.JambaConfig(**sizes))
    folder = saved(tmp_path / "jamba", model)
    problem, = found(folder)
    assert "need the Python package mamba_ssm and causal_conv1d" in problem.reason and "config.json" in problem.fix
    settings(use_mamba_kernels=False)(folder)
    assert not found(folder)


def test_a_model_with_layers_for_each_language_must_know_whose_to_use(bench, tmp_path):
    model = transformers.XmodForSequenceClassification(transformers.XmodConfig(**SIZES, languages=["de_DE", "en_XX"]))
    folder = saved(tmp_path / "xmod", model)
    problem, = found(folder)
    assert "(de_DE, en_XX), and the default_language says none" in problem.reason and "config.json" in problem.fix
    settings(default_language="en")(folder)
    problem, = found(folder)
    assert "'en' is none of them" in problem.reason
    settings(default_language="en_XX")(folder)
    assert not found(folder)
    with pytest.raises(InputError, match="layers for each language") as caught:
        examine(bench.job(model={"type": "xmod", **SIZES}))
    assert [problem.key for problem in caught.value.problems] == ["model.default_language"]
    assert examine(bench.job(model={"type": "xmod", **SIZES, "default_language": "en_XX"}))


def test_weights_that_only_loading_finds_unfit_are_a_sentence(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "pruned")
    settings(pruned_heads={"0": [0]})(tmp_path / "pruned")
    with pytest.raises(UserError, match="do not fit its config.json: size mismatch for bert.encoder"), \
            build._misfits_explained(str(tmp_path / "pruned")):
        transformers.BertForSequenceClassification.from_pretrained(tmp_path / "pruned")
