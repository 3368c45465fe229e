"""Score an export as any other program would: with onnxruntime, numpy and a tokenizer, and nothing of debzero.

`score_alone.py FOLDER SAMPLES METRIC` prints the score as JSON. SAMPLES is an .npz of the held-out samples: `ids`
(int64[n, width], padded), their `mask`, and where they have classes their `labels`; for an encoder-decoder that chooses
the tokens of each class's name in `names`, for one that writes those of its `answers`.
"""
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

folder, samples = Path(sys.argv[1]), np.load(sys.argv[2])
ids, mask = samples["ids"], samples["mask"]


def session(name):
    return onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])


def asked(graph, known):
    """{output: its values}"""
    names = [each.name for each in graph.get_outputs()]
    return dict(zip(names, graph.run(names, {each.name: known[each.name] for each in graph.get_inputs()})))


def accuracy():
    logits = chosen() if "names" in samples else asked(session("model.onnx"), {
        "input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids})["logits"]
    names = json.loads((folder / "config.json").read_text())["id2label"]
    answers = [names[str(best)] for best in logits.argmax(1)]
    return {"accuracy": float(np.mean([answer == label for answer, label in zip(answers, samples["labels"])]))}


def log_chances(logits):
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def chosen():
    """How likely a decoder is to answer with each name: float64[n, classes]"""
    start = json.loads((folder / "config.json").read_text())["decoder_start_token_id"]
    encoder, decoder = session("encoder_model.onnx"), session("decoder_model.onnx")
    known = {"encoder_attention_mask": mask, "encoder_hidden_states": asked(encoder, {
        "input_ids": ids, "attention_mask": mask})["last_hidden_state"]}
    found = []
    for name in samples["names"]:
        name = np.broadcast_to(name[name >= 0], (len(ids), (name >= 0).sum()))
        before = np.concatenate([np.full((len(ids), 1), start), name[:, :-1]], 1).astype(np.int64)
        chances = log_chances(asked(decoder, {**known, "input_ids": before})["logits"])
        found.append(np.take_along_axis(chances, name[..., None], 2)[..., 0].sum(1))
    return np.stack(found, 1)


def loss():
    """The mean of the texts' losses."""
    graph = session("model.onnx")
    empty = {each.name: np.zeros((len(ids), each.shape[1], 0, each.shape[3]), np.float32) for each in graph.get_inputs()
             if each.name.startswith("past")}
    places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape).astype(np.int64)
    logits = asked(graph, {"input_ids": ids, "attention_mask": mask, "position_ids": places, **empty})["logits"]
    chances = log_chances(logits[:, :-1])
    losses = -np.take_along_axis(chances, ids[:, 1:, None], 2)[..., 0] * mask[:, 1:]
    return {"loss": float((losses.sum(1) / mask[:, 1:].sum(1)).mean())}


def exact_match():
    """Of texts that are written greedily."""
    from tokenizers import Tokenizer

    config = json.loads((folder / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder, first, later = (session(f"{name}.onnx") for name in ("encoder_model", "decoder_model",
                                                                  "decoder_with_past_model"))
    known = {"encoder_attention_mask": mask, "encoder_hidden_states": asked(encoder, {
        "input_ids": ids, "attention_mask": mask})["last_hidden_state"]}
    written = np.full((len(ids), 1), config["decoder_start_token_id"], np.int64)
    for decoder in [first, *[later] * (samples["answers"].shape[1] - 1)]:
        made = asked(decoder, {**known, "input_ids": written[:, -1:]})
        written = np.concatenate([written, made.pop("logits")[:, -1:].argmax(-1)], 1)
        known.update({name.replace("present", "past_key_values"): value for name, value in made.items()})

    def text(row):
        row = row.tolist()
        end = row.index(config["eos_token_id"]) if config["eos_token_id"] in row else len(row)
        return " ".join(tokenizer.decode(row[:end], skip_special_tokens=True).split())

    return {"exact_match": float(np.mean([text(answer) == text(wanted) for answer, wanted in zip(
        written[:, 1:], samples["answers"])]))}


made = {"accuracy": accuracy, "loss": loss, "exact_match": exact_match}[sys.argv[3]]()
assert not {"debzero", "torch", "transformers", "optimum"} & sys.modules.keys()
print(json.dumps(made))
