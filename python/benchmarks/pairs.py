#!/usr/bin/env python3
"""Sentence pairs shaped like GLUE's MRPC, and a small BERT with their vocabulary: generated, and the same each time.

    python3 python/benchmarks/pairs.py data FOLDER [--rows 3668 --held-out 408 --vocabulary 1200 --seed 0]
    python3 python/benchmarks/pairs.py model FOLDER --shape '{"vocab_size": 1200, "hidden_size": 128}' [--seed 0]

MRPC has 3668 training and 408 validation pairs, 68 % of them paraphrases, and a pair takes 53 word pieces on average
and 103 at most. So do these. Words consist of syllables, and each word is one word piece. The second sentence is an
edited copy of the first: words are left out or added, neighbours change places, and some words are replaced, in a
paraphrase by synonyms, else by words that contradict them. Which word is which, a model has to learn from the labels.
"""
from __future__ import annotations

import argparse
import csv
import json
import random
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

TRAIN, HELD_OUT, POSITIVE = 3668, 408, 0.68
MEAN, SPREAD, SHORTEST, LONGEST = 53, 14, 15, 103  # word pieces of a pair, with its three special tokens
BERT_LARGE = {"vocab_size": 30522, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
              "intermediate_size": 4096}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
FUNCTION = 40                 # words like "the", half of every sentence
EDITS = (2, 5)                # replaced words of a second sentence, least and most


class Pair(NamedTuple):
    sentence1: str
    sentence2: str
    label: int


def word(number: int) -> str:
    """Two syllables, or three where those are used up: `number` written with syllables for digits, so no two are
    alike."""
    base, text = len(SYLLABLES), ""
    number += base
    while number:
        number, digit = divmod(number, base)
        text = SYLLABLES[digit] + text
    return text


class Language:
    """The words of a vocabulary of `size` entries, by what they are for."""

    def __init__(self, size: int) -> None:
        words = [word(number) for number in range(size - len(SPECIAL))]
        self.vocabulary = [*SPECIAL, *words]
        self.function, content = words[:FUNCTION], words[FUNCTION:]
        quarter = len(content) // 4
        # The first `quarter` of the plain words have a synonym and a contrary each.
        self.synonyms, self.contraries = content[:quarter], content[quarter : 2 * quarter]
        self.plain = content[2 * quarter :]
        # Some words are commoner than others, as in any language.
        self._weights = list(accumulate(1 / (rank + 20) for rank in range(len(self.plain))))
        self._number = {plain: number for number, plain in enumerate(self.plain[:quarter])}

    def speak(self, dice: random.Random, count: int) -> list[str]:
        return [dice.choice(self.function) if dice.random() < 0.5
                else dice.choices(self.plain, cum_weights=self._weights)[0]
                for _ in range(count)]

    def pair(self, dice: random.Random, label: int) -> Pair:
        """One pair, with as many words as word pieces."""
        length = round(dice.gammavariate((MEAN / SPREAD) ** 2, SPREAD**2 / MEAN))
        words = min(LONGEST, max(SHORTEST, length)) - 3
        first = self.speak(dice, round(words * dice.uniform(0.42, 0.58)))
        second = list(first)
        while len(second) > words - len(first):
            second.pop(dice.randrange(len(second)))
        for _ in range(words - len(first) - len(second)):
            second.insert(dice.randrange(len(second) + 1), self.speak(dice, 1)[0])
        for _ in range(len(second) // 4):
            place = dice.randrange(len(second) - 1)
            second[place], second[place + 1] = second[place + 1], second[place]
        others = self.synonyms if label else self.contraries
        for place in dice.sample(range(len(second)), dice.randint(*EDITS)):
            number = self._number.get(second[place])
            second[place] = others[dice.randrange(len(others)) if number is None else number]
        return Pair(" ".join(first), " ".join(second), label)

    def pairs(self, count: int, seed: str) -> Iterator[Pair]:
        dice = random.Random(seed)
        labels = [int(number < round(POSITIVE * count)) for number in range(count)]
        dice.shuffle(labels)
        for label in labels:
            yield self.pair(dice, label)


def write_pairs(folder: Path, rows: int = TRAIN, held_out: int = HELD_OUT, vocabulary: int = 1200,
                seed: int = 0) -> None:
    """train.csv and validation.csv in `folder`, with the columns sentence1, sentence2 and label."""
    folder.mkdir(parents=True, exist_ok=True)
    language = Language(vocabulary)
    for name, count in (("train", rows), ("validation", held_out)):
        with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(Pair._fields)
            table.writerows(language.pairs(count, f"{name} {seed}"))


def tokenizer(vocabulary: int) -> Any:
    """BERT's WordPiece tokenizer over the vocabulary."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import PreTrainedTokenizerFast

    numbers = {entry: number for number, entry in enumerate(Language(vocabulary).vocabulary)}
    names = {f"{entry.strip('[]').lower()}_token": entry for entry in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=BertWordPieceTokenizer(vocab=numbers, lowercase=True)._tokenizer,
                                   model_max_length=512,
                                   model_input_names=["input_ids", "token_type_ids", "attention_mask"], **names)


def write_model(folder: Path, shape: dict[str, int], seed: int = 0) -> int:
    """A BERT with two classes and random weights drawn from `seed`, and its tokenizer; returns the number of
    parameters."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    model = BertForSequenceClassification(BertConfig(**shape, num_labels=2))
    model.save_pretrained(folder)
    tokenizer(shape["vocab_size"]).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    data = kinds.add_parser("data", help="write train.csv and validation.csv")
    data.add_argument("--rows", type=int, default=TRAIN)
    data.add_argument("--held-out", type=int, default=HELD_OUT)
    data.add_argument("--vocabulary", type=int, default=1200)
    model = kinds.add_parser("model", help="write a model with random weights and its tokenizer")
    model.add_argument("--shape", type=json.loads, required=True, metavar="JSON",
                       help="settings of transformers' BertConfig")
    for kind in (data, model):
        kind.add_argument("folder", type=Path)
        kind.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.kind == "data":
        write_pairs(options.folder, options.rows, options.held_out, options.vocabulary, options.seed)
    else:
        print(f"{write_model(options.folder, options.shape, options.seed)} parameters")


if __name__ == "__main__":
    main()
