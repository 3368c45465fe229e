"""Fill the hub's cache with stand-ins for what the packaged jobs ask the hub for: the same names, kinds, columns and
special tokens, and weights and data that train in seconds.

Runs as the jobs' user, with XDG_CACHE_HOME as in their unit.
"""

import random
from pathlib import Path

import datasets
from datasets.arrow_writer import ArrowWriter
from huggingface_hub.constants import HF_HUB_CACHE
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

COMMIT = "0123456789abcdef" * 2 + "01234567"
LABELS = ["not_equivalent", "equivalent"]
WORDS = [f"word{number}" for number in range(200)] + LABELS
MODELS = {  # the configuration, and the special tokens of the real tokenizer
    "bert-large-uncased": (
        {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 32},
        {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}),
    "gpt2-medium": (
        {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 1024},
        {"unk_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
    "t5-base": (
        {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2,
         "decoder_start_token_id": 0},
        {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}),
}
PAIRS = datasets.Features({"sentence1": datasets.Value("string"), "sentence2": datasets.Value("string"),
                           "label": datasets.ClassLabel(names=LABELS)})
TEXTS = datasets.Features({"text": datasets.Value("string")})


def save_model(name: str) -> None:
    settings, special = MODELS[name]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*special.values(), *WORDS]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = Path(HF_HUB_CACHE, f"models--{name}")
    snapshot = folder / "snapshots" / COMMIT
    kind = settings.pop("model_type")
    AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=len(vocabulary), **settings)).save_pretrained(snapshot)
    inputs = ["input_ids", *(["token_type_ids"] if kind == "bert" else []), "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **special).save_pretrained(snapshot)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(COMMIT)


def save_dataset(name: str, config: str, features: datasets.Features, splits: dict[str, list[dict]]) -> None:
    folder = Path(datasets.config.HF_DATASETS_CACHE, name, config, "0.0.0", COMMIT)
    folder.mkdir(parents=True)
    sizes = datasets.SplitDict(dataset_name=name)
    for split, rows in splits.items():
        with ArrowWriter(path=str(folder / f"{name}-{split}.arrow"), features=features) as writer:
            for row in rows:
                writer.write(row)
            count, size = writer.finalize()
        sizes.add(datasets.SplitInfo(split, num_bytes=size, num_examples=count, dataset_name=name))
    datasets.DatasetInfo(features=features, splits=sizes, dataset_name=name, config_name=config,
                         version="0.0.0").write_to_directory(str(folder))


def main() -> None:
    dice = random.Random(0)

    def sentence(length: int) -> str:
        return " ".join(dice.choices(WORDS, k=length))

    for name in MODELS:
        save_model(name)
    save_dataset("glue", "mrpc", PAIRS, {
        split: [{"sentence1": sentence(8), "sentence2": sentence(8), "label": number % 2} for number in range(count)]
        for split, count in (("train", 64), ("validation", 16), ("test", 16))})
    save_dataset("wikitext", "wikitext-2-raw-v1", TEXTS, {
        split: [{"text": sentence(50)} for _ in range(count)]
        for split, count in (("train", 400), ("validation", 50), ("test", 50))})


if __name__ == "__main__":
    main()
