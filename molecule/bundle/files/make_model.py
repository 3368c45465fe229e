"""The smallest model and data set that a job can name, for a bundle: make_model.py FOLDER."""
import json
import struct
import sys
from pathlib import Path

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "very", "not"]
SIZE, POSITIONS = 16, 32
CONFIG = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": len(WORDS), "hidden_size": SIZE,
          "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": SIZE,
          "max_position_embeddings": POSITIONS}
LAYER = "encoder.layer.0."
DENSE = [*(f"{LAYER}attention.self.{name}" for name in ("query", "key", "value")), f"{LAYER}attention.output.dense",
         f"{LAYER}intermediate.dense", f"{LAYER}output.dense", "pooler.dense"]
NORMS = ["embeddings.LayerNorm", f"{LAYER}attention.output.LayerNorm", f"{LAYER}output.LayerNorm"]
SHAPES = {f"embeddings.{name}_embeddings.weight": [rows, SIZE]
          for name, rows in (("word", len(WORDS)), ("position", POSITIONS), ("token_type", 2))}
SHAPES.update({f"{name}.weight": [SIZE, SIZE] for name in DENSE})
SHAPES.update({f"{name}.weight": [SIZE] for name in NORMS})
SHAPES.update({f"{name}.bias": [SIZE] for name in DENSE + NORMS})


def weights() -> bytes:
    """As safetensors: numbers that are neither all alike nor large."""
    head: dict = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, shape in SHAPES.items():
        count = shape[0] * (shape[1] if shape[1:] else 1)
        start, data = len(data), data + struct.pack(f"<{count}f", *((at * 7 % 13 - 6) / 20 for at in range(count)))
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, len(data)]}
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + data


model, dataset = Path(sys.argv[1], "tiny"), Path(sys.argv[1], "opinions")
for folder in (model, dataset):
    folder.mkdir(parents=True, exist_ok=True)
(model / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
(model / "config.json").write_text(json.dumps(CONFIG))
(model / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
(model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
(model / "model.safetensors").write_bytes(weights())
rows = [f"{word} {other},{label}" for other in WORDS[5:] for word, label in (("good", 1), ("bad", 0))]
for part in ("train", "validation"):
    (dataset / f"{part}.csv").write_text("text,label\n" + "".join(f"{row}\n" for row in 4 * rows))
