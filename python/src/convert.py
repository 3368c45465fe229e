"""Weights that are a pickle, as safetensors: reads a tar of pytorch_model*.bin from standard input and writes to
standard output.

Reading a pickle can run what its author wrote. `debzero check` shows the command that starts this in a sandbox.
"""
import io
import sys
import tarfile


def main() -> int:
    import torch
    from safetensors.torch import save

    weights = {}
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content:
                loaded = torch.load(io.BytesIO(content.read()), map_location="cpu", weights_only=True)
                # Tied weights are one tensor with two names there, which safetensors does not store.
                weights.update({name: tensor.clone().contiguous() for name, tensor in loaded.items()
                                if isinstance(tensor, torch.Tensor)})
    if not weights:
        sys.exit("no weights: pytorch_model*.bin is not what save_pretrained wrote")
    sys.stdout.buffer.write(save(weights, {"format": "pt"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
