"""Weights that are a pickle, as safetensors: `convert.py FOLDER` writes model.safetensors beside pytorch_model*.bin.

Reading a pickle can run what its author wrote. So a process in a sandbox of systemd's does it: the pickles reach it
through a pipe, the weights come out through another, and it needs no file of the user's. `debzero check` names this
command. Standard library only, but for the process in the sandbox.
"""
import contextlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

# Of systemd 247 and later. A user of its own that may write nothing but its standard output, and sees neither homes nor
# devices, other processes, the network or any service of the host.
SANDBOX = ("DynamicUser=yes", "ProtectSystem=strict", "ProtectHome=yes", "ProtectProc=invisible", "PrivateDevices=yes",
           "PrivateNetwork=yes", "RestrictAddressFamilies=~AF_UNIX", "CapabilityBoundingSet=",
           "SystemCallFilter=@system-service")


def convert(folder: Path) -> int:
    """Returns the exit code."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from debzero.base.errors import UserError
    from debzero.base.privileges import acting_as_owner, keep_to_roots

    keep_to_roots("PATH")
    try:
        with acting_as_owner(folder):  # root reads and writes there with his rights
            return _convert(folder)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1


def _convert(folder: Path) -> int:
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    if not pickles:
        print(f"{folder} has no pytorch_model*.bin", file=sys.stderr)
        return 2
    command = [*([] if 0 in os.getresuid() else ["sudo"]), "systemd-run", "--quiet", "--pipe", "--wait",
               *(f"--property={setting}" for setting in SANDBOX), sys.executable, "-I", os.path.abspath(__file__)]
    try:
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=folder) as temporary:
            part, result = Path(temporary, "part"), folder / "model.safetensors"
            # Where the process ends early, its exit code says so.
            with open(part, "xb") as written, contextlib.suppress(BrokenPipeError), subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=written, preexec_fn=_be_root) as process, tarfile.open(
                    fileobj=process.stdin, mode="w|", dereference=True) as tar:
                for pickle in pickles:
                    tar.add(pickle, pickle.name)
            if not process.returncode:
                os.replace(part, result)
                print(f"written: {result}")
                return 0
    except OSError as error:
        print(error, file=sys.stderr)
    print(f"the weights of {folder} could not be converted", file=sys.stderr)
    return 1


def _be_root() -> None:
    """Where root runs this, and acts as another user."""
    if 0 in os.getresuid():
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)


def read() -> int:
    """In the sandbox: a tar of pickles from standard input, safetensors to standard output."""
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
    sys.exit(convert(Path(sys.argv[1])) if sys.argv[1:] else read())
