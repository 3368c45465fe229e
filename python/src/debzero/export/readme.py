"""The README of an exported folder, with code that runs it: onnxruntime, a tokenizer and nothing of debzero."""
from __future__ import annotations

from typing import Any

from debzero.base.text import markdown_text
from debzero.export.verify import Comparison
from debzero.predict.exported import NAMES
from debzero.predict.trained import Trained

TEXTS = ("a text", "its pair")  # of each column


def text(trained: Trained, record: dict[str, Any], found: Comparison) -> str:
    title = f"{trained.config.model_type} for {trained.task}, {NAMES[record['to']]} in {record['precision']}"
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    rows = [f"| {markdown_text(name)} | {found.original[name]:.4f} | {value:.4f} |"
            for name, value in found.exported.items()]
    lost = ["", "It was exported with `--accept-loss`: " + markdown_text("; ".join(record["accepted"])) + "."] if (
        record["accepted"]) else []
    return "\n".join([
        f"# {markdown_text(title)}", "", *(_graphs if record["to"] == "onnx" else _engines)(trained, record), "",
        "## Comparison with the original", "",
        f"On the {found.samples} held-out samples of the job that trained it:", "",
        "| | original | exported |", "|---|---|---|", *rows, "",
        f"{found.differing} of {found.answers} answers differ; logits by {found.largest_difference:.3g} at most, by",
        f"{found.mean_difference:.3g} on average.", *lost, "", f"Versions: {markdown_text(versions)}.", ""])


def _graphs(trained: Trained, record: dict[str, Any]) -> list[str]:
    return ["Written and verified by `debzero export`. Its graphs hold operators of",
            "onnxruntime's own, so that is what runs them. `export.json` has the digests, the axes and the comparison.",
            "", "## Use", "", "```python", *code(trained), "```"]


def _engines(trained: Trained, record: dict[str, Any]) -> list[str]:
    built = [f"- {markdown_text(name)}: {markdown_text(value)}" for name, value in record["built_for"].items()]
    return ["Written and verified by `debzero export`. Its engines are good for this host alone:", "", *built, "",
            "`export.json` has their digests, their profiles (the shapes that they take) and the comparison. An engine",
            "is code: load none that somebody else may have written.", "", "## Use", "", "```sh",
            f"debzero predict THIS_FOLDER {_asked(trained)} --engine tensorrt", "```"]


def code(trained: Trained) -> list[str]:
    """Lines of Python that answer one text, where this file lies."""
    parts = {"causal-lm": _continuing, "text-to-text": _answering}
    return ["import json", "import numpy", "import onnxruntime", "from transformers import AutoTokenizer", "",
            'tokenizer = AutoTokenizer.from_pretrained(".")', *parts.get(trained.task, _scoring)(trained)]


def _asked(trained: Trained) -> str:
    """Texts as arguments of the shell: one for each column."""
    return " ".join(f'"{text}"' for text in TEXTS[: len(trained.inputs.text)])


def _sample(trained: Trained) -> str:
    """A text, put together as in training, as the arguments of the tokenizer."""
    texts = list(TEXTS[: len(trained.inputs.text)])
    if trained.inputs.prefix:
        texts = ["".join(prefix + text for prefix, text in zip(trained.inputs.prefix, texts))]
    return ", ".join(f"[{text!r}]" for text in texts)


def _scoring(trained: Trained) -> list[str]:
    shown = "print(logits[:, 0])" if trained.task == "regression" else (
        'print([json.load(open("config.json"))["id2label"][str(best)] for best in logits.argmax(1)])')
    return ['session = onnxruntime.InferenceSession("model.onnx", providers=onnxruntime.get_available_providers())',
            f"batch = tokenizer({_sample(trained)}, padding=True, truncation=True, "
            f"max_length={trained.inputs.max_length}, return_tensors=\"np\")",
            "inputs = {each.name: batch[each.name].astype(numpy.int64) for each in session.get_inputs()}",
            "logits = session.run(None, inputs)[0]", shown]


def _continuing(trained: Trained) -> list[str]:
    end = trained.tokenizer.eos_token_id
    return ['session = onnxruntime.InferenceSession("model.onnx", providers=onnxruntime.get_available_providers())',
            "past = {each.name: numpy.zeros((1, each.shape[1], 0, each.shape[3]), numpy.float32)",
            '        for each in session.get_inputs() if each.name.startswith("past")}',
            'ids = tokenizer("a text to continue", add_special_tokens=False)["input_ids"]',
            "new = ids",
            f"while len(ids) < {min(50, trained.positions or 50)} and ids[-1] != {end}:",
            '    places = {"input_ids": new, "attention_mask": [1] * len(ids),',
            '              "position_ids": range(len(ids) - len(new), len(ids))}',
            "    feeds = {each.name: numpy.array([places[each.name]], numpy.int64)",
            "             for each in session.get_inputs() if each.name in places}",
            "    logits, *present = session.run(None, {**feeds, **past})",
            "    past, new = dict(zip(past, present)), [int(logits[0, -1].argmax())]",
            "    ids = ids + new",
            "print(tokenizer.decode(ids, skip_special_tokens=True))"]


def _answering(trained: Trained) -> list[str]:
    start = trained.config.decoder_start_token_id
    end, sample = trained.tokenizer.eos_token_id, _sample(trained)
    return ['parts = ["encoder_model", "decoder_model", "decoder_with_past_model"]',
            'encoder, first, later = (onnxruntime.InferenceSession(f"{part}.onnx") for part in parts)',
            f"batch = tokenizer({sample}, return_tensors=\"np\")",
            'ids, mask = (batch[name].astype(numpy.int64) for name in ("input_ids", "attention_mask"))',
            'hidden = encoder.run(None, {"input_ids": ids, "attention_mask": mask})[0]',
            f"decoder, past, ids = first, {{}}, [{start}]",
            f"while len(ids) <= {trained.limit} and (len(ids) == 1 or ids[-1] != {end}):",
            '    known = {"input_ids": numpy.array([ids[-1:]]), "encoder_attention_mask": mask,',
            '             "encoder_hidden_states": hidden, **past}',
            "    given = {each.name: known[each.name] for each in decoder.get_inputs()}",
            "    logits, *present = decoder.run(None, given)",
            '    names = [each.name.replace("present", "past_key_values") for each in decoder.get_outputs()[1:]]',
            "    past.update(zip(names, present))",
            "    decoder, ids = later, [*ids, int(logits[0, -1].argmax())]",
            "print(tokenizer.decode(ids, skip_special_tokens=True))"]
