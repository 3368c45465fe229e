"""Weights that are a pickle, as safetensors: `convert.py FOLDER RESULT`.

Loading a pickle may run anything. `debzero check` shows how to start this where that can do no harm.
"""
import shutil
import sys
from pathlib import Path


def main(folder: Path, result: Path) -> int:
    import torch
    from safetensors.torch import save_file

    weights = {}
    for file in sorted(folder.glob("pytorch_model*.bin")):
        weights.update(torch.load(file, map_location="cpu", weights_only=True))
    if not weights:
        print(f"{folder} has no pytorch_model.bin", file=sys.stderr)
        return 2
    # Tied weights are one tensor with two names there, which safetensors does not store.
    save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, result / "model.safetensors",
              {"format": "pt"})
    for file in folder.iterdir():
        if file.suffix in (".json", ".txt", ".model") and not file.name.endswith(".bin.index.json"):
            shutil.copy(file, result)
    print(f"written: {result}; copy it to where the job can read it, and name that folder in `model:`")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
