#!/usr/bin/env python3
"""TensorRT in a process of its own: the Python of the trainer has none, and what TensorRT needs does not go with it.

debzero/predict/tensorrt_process starts it with the Python of the environment that the role tensorrt makes, and talks to
it over its standard input and output (debzero/predict/wire). It builds engines from graphs, loads them and runs them on
one GPU. It must do with TensorRT, cuda-bindings, numpy and the standard library.
"""
from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any, Optional

import numpy as np
import tensorrt as trt
from cuda.bindings import runtime as cudart

# Neither the current folder nor what PYTHON* variables add is searched; this folder has the package beside it.
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from debzero.predict import wire  # noqa: E402 - found by the path above

Message = dict[str, Any]
Arrays = dict[str, np.ndarray]

DRIVER = Path("/sys/module/nvidia/version")
PR_SET_PDEATHSIG = 1


class TensorRTError(Exception):
    """What TensorRT or CUDA could not do, in its own words."""


class Log(trt.ILogger):
    """Keeps TensorRT's errors: its functions return no more than that they failed."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, msg: str) -> None:
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            self.errors.append(msg)

    def failed(self, what: str) -> TensorRTError:
        """The error to raise, with what has been logged since the last one."""
        said, self.errors = "; ".join(self.errors[-3:]), []
        return TensorRTError(f"{what}: {said}" if said else what)


def cuda(result: tuple[Any, ...]) -> Any:
    """What a call of CUDA's returned beside its error code."""
    error, *values = result
    if error != cudart.cudaError_t.cudaSuccess:
        raise TensorRTError(f"CUDA: {cudart.cudaGetErrorString(error)[1].decode()}")
    return values[0] if values else None


class Loaded:
    """An engine with its context, and the GPU's memory for its inputs and outputs, which grows with the batches."""

    def __init__(self, engine: Any, log: Log, stream: Any) -> None:
        self.engine, self.log, self.stream = engine, log, stream
        self.context = engine.create_execution_context()
        if self.context is None:
            raise log.failed("the engine does not fit the GPU's memory")
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        inputs = [engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names]
        self.inputs = [name for name, is_input in zip(names, inputs) if is_input]
        self.outputs = [name for name, is_input in zip(names, inputs) if not is_input]
        self.profile = 0
        self.buffers: dict[str, tuple[int, int]] = {}  # {input or output: its address and bytes}

    def type_of(self, name: str) -> np.dtype[Any]:
        return np.dtype(trt.nptype(self.engine.get_tensor_dtype(name)))

    def facts(self) -> Message:
        profiles = [{name: [list(shape) for shape in self.engine.get_tensor_profile_shape(name, number)]
                     for name in self.inputs} for number in range(self.engine.num_optimization_profiles)]
        return {"inputs": {name: self.type_of(name).str for name in self.inputs}, "outputs": self.outputs,
                "profiles": profiles}

    def room(self, name: str, size: int) -> int:
        """The address of at least `size` bytes on the GPU."""
        address, held = self.buffers.get(name, (0, 0))
        if held < size:
            if address:
                cuda(cudart.cudaFree(address))
            self.buffers[name] = (0, 0)
            address = int(cuda(cudart.cudaMalloc(size)))
            self.buffers[name] = (address, size)
        return address

    def run(self, profile: int, arrays: Arrays, last: dict[str, int]) -> Arrays:
        """The outputs. `last`: {output: the number of the token} that alone is wanted of each of its rows."""
        if profile != self.profile:
            if not self.context.set_optimization_profile_async(profile, int(self.stream)):
                raise self.log.failed(f"profile {profile} cannot be used")
            self.profile = profile
        sent = {name: np.ascontiguousarray(arrays[name], self.type_of(name)) for name in self.inputs}
        for name, array in sent.items():
            if not self.context.set_input_shape(name, array.shape):
                raise self.log.failed(f"{name} cannot have the shape {array.shape}")
            place = self.room(name, array.nbytes)
            cuda(cudart.cudaMemcpyAsync(place, array.ctypes.data, array.nbytes,
                                        cudart.cudaMemcpyKind.cudaMemcpyHostToDevice, self.stream))
            self.context.set_tensor_address(name, place)
        made: dict[str, tuple[int, ...]] = {}
        for name in self.outputs:
            made[name] = tuple(self.context.get_tensor_shape(name))
            size = int(np.prod(made[name])) * self.type_of(name).itemsize
            self.context.set_tensor_address(name, self.room(name, max(size, 1)))
        if not self.context.execute_async_v3(int(self.stream)):
            raise self.log.failed("the engine failed")
        results = {name: self._fetched(name, shape, last.get(name)) for name, shape in made.items()}
        cuda(cudart.cudaStreamSynchronize(self.stream))
        return results

    def _fetched(self, name: str, shape: tuple[int, ...], token: Optional[int]) -> np.ndarray:
        """An output in the host's memory once the stream is synchronised, or one token of it: [rows, 1, ...]."""
        kind, (address, _) = self.type_of(name), self.buffers[name]
        to_host = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        if token is None:
            array = np.empty(shape, kind)
            cuda(cudart.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, to_host, self.stream))
            return array
        array = np.empty((shape[0], 1, *shape[2:]), kind)
        width = array.nbytes // shape[0]
        cuda(cudart.cudaMemcpy2DAsync(array.ctypes.data, width, address + token * width, width * shape[1], width,
                                      shape[0], to_host, self.stream))
        return array


class Worker:
    """What is asked of it: one method for each `op`."""

    def __init__(self) -> None:
        self.log = Log()
        self.runtime: Any = None
        self.stream: Any = None
        self.loaded: list[Loaded] = []

    def start(self, message: Message, arrays: Arrays) -> tuple[Message, Arrays]:
        """The GPU, its driver and this TensorRT: an engine is good for these alone."""
        try:
            cuda(cudart.cudaSetDevice(message["device"]))
            properties = cuda(cudart.cudaGetDeviceProperties(message["device"]))
        except RuntimeError as error:  # of cuda-bindings where there is no driver
            raise TensorRTError(f"CUDA: {error}") from None
        self.stream = cuda(cudart.cudaStreamCreate())
        version = cuda(cudart.cudaDriverGetVersion())
        driver = DRIVER.read_text().strip() if DRIVER.is_file() else f"of CUDA {version // 1000}.{version % 1000 // 10}"
        return {"gpu": properties.name.decode().rstrip("\0"), "capability": f"{properties.major}.{properties.minor}",
                "driver": driver, "tensorrt": trt.__version__}, {}

    def build(self, message: Message, arrays: Arrays) -> tuple[Message, Arrays]:
        """Write an engine. `graph`, `engine`: paths; `precision`: fp32 or fp16; `keep`: the layers that are computed in
        fp32 nevertheless; `profiles`: [{input: [smallest, likeliest, largest shape]}]; `workspace`: bytes."""
        builder = trt.Builder(self.log)
        half = message["precision"] == "fp16"
        if half and not builder.platform_has_fast_fp16:
            raise TensorRTError("this GPU has no half precision that is faster than single precision")
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
        parser = trt.OnnxParser(network, self.log)
        if not parser.parse_from_file(message["graph"]):
            raise TensorRTError("it cannot read the graph: " + "; ".join(
                f"{parser.get_error(number).desc()} (node {parser.get_error(number).node()})"
                for number in range(parser.num_errors)))
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, message["workspace"])
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is what was asked for, not 10 bits of it
        if half:
            config.set_flag(trt.BuilderFlag.FP16)
            config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
            keep_in_fp32(network, set(message["keep"]))
        for shapes in message["profiles"]:
            profile = builder.create_optimization_profile()
            for name, (least, best, most) in shapes.items():
                profile.set_shape(name, tuple(least), tuple(best), tuple(most))
            if config.add_optimization_profile(profile) < 0:
                raise self.log.failed(f"it refuses the profile {shapes}")
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise self.log.failed("it cannot build an engine")
        Path(message["engine"]).write_bytes(plan)
        return {}, {}

    def load(self, message: Message, arrays: Arrays) -> tuple[Message, Arrays]:
        """Load the engine at `engine`, and say what it takes; later messages name it by its `number`."""
        self.runtime = self.runtime or trt.Runtime(self.log)
        engine = self.runtime.deserialize_cuda_engine(Path(message["engine"]).read_bytes())
        if engine is None:
            raise self.log.failed("it cannot load the engine")
        self.loaded.append(Loaded(engine, self.log, self.stream))
        return {"number": len(self.loaded) - 1, **self.loaded[-1].facts()}, {}

    def run(self, message: Message, arrays: Arrays) -> tuple[Message, Arrays]:
        return {}, self.loaded[message["number"]].run(message["profile"], arrays, message["last"])


def keep_in_fp32(network: Any, names: set[str]) -> None:
    """Keep these layers, which must all be there, and what they hand on, in fp32."""
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.name in names:
            names.discard(layer.name)
            layer.precision = trt.float32
            for output in range(layer.num_outputs):
                layer.set_output_type(output, trt.float32)
    if names:
        raise TensorRTError(f"it has no layer {min(names)}, which must be computed in fp32")


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other side's, which then ends this process
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # in the middle of a build, too
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    worker = Worker()
    while True:
        asked = wire.receive(sys.stdin.buffer)
        if asked is None:
            return
        message, arrays = asked
        try:
            answer, results = getattr(worker, message["op"])(message, arrays)
        except TensorRTError as error:
            answer, results = {"error": str(error)}, {}
        except Exception as error:  # of TensorRT's bindings: of many types
            answer, results = {"error": str(worker.log.failed(f"{type(error).__name__}: {error}"))}, {}
        wire.send(answers, answer, results)


if __name__ == "__main__":
    main()
