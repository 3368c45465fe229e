"""TensorRT's names that the worker uses, on onnxruntime, for hosts without a GPU. It refuses what TensorRT refuses.

In half precision each result is rounded to it, and so overflows, but for layers whose precision and type are fp32. A
test compares the names, and what they take, with the real ones. STAND_IN_HOST says what host this is: {"tensorrt":
its version, "capability": "8.0", "fp16": whether half precision is fast}. It knows nothing of how fast a GPU is, how
much memory an engine takes, or what TensorRT's own kernels compute.
"""
from __future__ import annotations

import ctypes
import enum
import json
import os

import numpy as np

HOST = {"tensorrt": "", "capability": "8.0", "fp16": True, **json.loads(os.environ.get("STAND_IN_HOST", "{}"))}
__version__ = HOST["tensorrt"]
MAGIC = b"stand-in of a TensorRT engine "
# Of what TensorRT's parser reads, the operators that Transformers' graphs have.
_NAMES = """Abs Add ArgMax Cast Clip Concat Constant ConstantOfShape CumSum Div Equal Erf Expand Flatten Gather
GatherElements Gemm Greater Identity Less Log MatMul Min Mod Mul Neg Not Pow Range ReduceMean Relu Reshape ScatterND
Shape Slice Softmax Split Sqrt Squeeze Sub Tanh Tile Transpose Trilu Unsqueeze Where"""
OPERATORS = {*_NAMES.split()}


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT32 = 3
    BOOL = 4


float32, int32 = DataType.FLOAT, DataType.INT32


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class BuilderFlag(enum.Enum):
    FP16 = 0
    TF32 = 7
    OBEY_PRECISION_CONSTRAINTS = 10


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0


def nptype(trt_type):
    return {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT32: np.int32,
            DataType.BOOL: np.bool_}[trt_type]


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def __init__(self):
        self.ready = True

    def log(self, severity, msg):
        raise NotImplementedError

    def error(self, msg):
        assert self.ready, "ILogger.__init__ was not called"
        self.log(ILogger.Severity.ERROR, msg)


class ILayer:
    __slots__ = ("_types", "name", "num_outputs", "precision")  # nothing else can be set, by a slip of the pen

    def __init__(self, node):
        self.name, self.num_outputs = node.name, len(node.output)
        self.precision, self._types = None, {}

    def set_output_type(self, index, dtype):
        assert index < self.num_outputs
        self._types[index] = dtype

    def is_fp32(self):
        """What is rounded unless both are said: what it computes in, and what it hands on."""
        return self.precision == float32 and self._types == dict.fromkeys(range(self.num_outputs), float32)


class INetworkDefinition:
    def __init__(self, flags):
        self.explicit, self.model, self.layers = bool(flags & 1), None, []

    @property
    def num_layers(self):
        return len(self.layers)

    def get_layer(self, index):
        return self.layers[index]


class ParserError:
    def __init__(self, text, number):
        self.text, self.number = text, number

    def desc(self):
        return self.text

    def node(self):
        return self.number


class OnnxParser:
    """Knows none of onnxruntime's operators, and not all of ONNX's."""

    def __init__(self, network, logger):
        self.network, self.errors = network, []

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, index):
        return self.errors[index]

    def parse_from_file(self, model):
        import onnx

        try:
            loaded = onnx.load(model)
        except Exception:
            self.errors = [ParserError(f"Failed to parse ONNX model from file: {model}", -1)]
            return False
        if not self.network.explicit:
            self.errors = [ParserError("This version of the ONNX parser only supports networks with an explicit batch "
                                       "dimension", -1)]
        for number, node in enumerate(loaded.graph.node):
            if node.op_type not in OPERATORS:
                self.errors.append(ParserError(f"No importer registered for op: {node.op_type}", number))
        self.network.model = loaded
        self.network.layers = [ILayer(node) for node in loaded.graph.node if node.op_type != "Constant"]
        return not self.errors


class IOptimizationProfile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, input, min, opt, max):
        if not len(min) == len(opt) == len(max) or not all(0 <= a <= b <= c for a, b, c in zip(min, opt, max)):
            raise ValueError("Shape provided for min, opt or max is inconsistent with other shapes")
        self.shapes[input] = [list(min), list(opt), list(max)]


class IBuilderConfig:
    def __init__(self):
        self.flags, self.profiles, self.workspace = {BuilderFlag.TF32}, [], 0

    def set_memory_pool_limit(self, pool, pool_size):
        assert pool == MemoryPoolType.WORKSPACE
        self.workspace = pool_size

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def add_optimization_profile(self, profile):
        if not profile.shapes:
            return -1
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1


class Builder:
    __slots__ = ("_logger", "platform_has_fast_fp16")

    def __init__(self, logger):
        self._logger, self.platform_has_fast_fp16 = logger, HOST["fp16"]

    def create_network(self, flags=0):
        return INetworkDefinition(flags)

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        for tensor in network.model.graph.input:
            dims = [axis.dim_value or -1 for axis in tensor.type.tensor_type.shape.dim]
            if -1 in dims and not config.profiles:
                return self._logger.error("Network has dynamic or shape inputs, but no optimization profile has been "
                                         "defined.")
            for profile in config.profiles:
                shapes = profile.get(tensor.name)
                if shapes is None:
                    return self._logger.error(f"{tensor.name} has a dynamic shape and is in no profile")
                if any(len(shape) != len(dims) or any(dim not in (-1, length) for dim, length in zip(dims, shape))
                       for shape in shapes):
                    return self._logger.error(f"{tensor.name}: the profile's shapes are not those of the network")
        half = BuilderFlag.FP16 in config.flags
        if half:
            obeys = BuilderFlag.OBEY_PRECISION_CONSTRAINTS in config.flags
            in_half(network.model, {layer.name for layer in network.layers if obeys and layer.is_fp32()})
        facts = {"tensorrt": __version__, "capability": HOST["capability"], "profiles": config.profiles}
        return MAGIC + json.dumps(facts).encode() + b"\n" + network.model.SerializeToString()


class Runtime:
    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine):
        if not serialized_engine.startswith(MAGIC):
            return self.logger.error("Serialization assertion magicTagRead == kMAGIC_TAG failed: Magic tag does not "
                                     "match")
        facts, model = serialized_engine[len(MAGIC) :].split(b"\n", 1)
        facts = json.loads(facts)
        if facts["tensorrt"] != __version__:
            return self.logger.error("Serialization assertion stdVersionRead == serializationVersion failed: Version "
                                     "tag does not match")
        if facts["capability"] != HOST["capability"]:
            return self.logger.error("The engine plan file is generated on an incompatible device, expecting compute "
                                     f"{HOST['capability']} got compute {facts['capability']}, please rebuild.")
        return ICudaEngine(facts["profiles"], model, self.logger)


class ICudaEngine:
    def __init__(self, profiles, model, logger):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # no cast is left out
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.profiles, self.logger = profiles, logger
        self.tensors = {each.name: (mode, each) for mode, some in (
            (TensorIOMode.INPUT, self.session.get_inputs()), (TensorIOMode.OUTPUT, self.session.get_outputs()))
            for each in some}

    @property
    def num_io_tensors(self):
        return len(self.tensors)

    @property
    def num_optimization_profiles(self):
        return len(self.profiles)

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_mode(self, name):
        return self.tensors[name][0]

    def get_tensor_dtype(self, name):
        return {"tensor(int64)": int32, "tensor(float)": float32}[self.tensors[name][1].type]

    def get_tensor_profile_shape(self, name, profile_index):
        return self.profiles[profile_index][name]

    def create_execution_context(self):
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine):
        self.engine, self.profile, self.shapes, self.addresses, self.results = engine, 0, {}, {}, {}

    def set_optimization_profile_async(self, profile_index, stream_handle):
        if not 0 <= profile_index < len(self.engine.profiles):
            self.engine.logger.error(f"Profile {profile_index} is not in range")
            return False
        self.profile, self.shapes = profile_index, {}
        return True

    def set_input_shape(self, name, shape):
        least, _, most = self.engine.profiles[self.profile][name]
        if len(shape) != len(most) or not all(low <= length <= high for low, length, high in zip(least, shape, most)):
            self.engine.logger.error(f"Parameter check failed: {name} {tuple(shape)} does not satisfy any optimization "
                                     f"profiles: profile {self.profile} takes {least} to {most}")
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, memory):
        self.addresses[name] = memory
        return True

    def get_tensor_shape(self, name):
        """What TensorRT derives is found by computing it for zeros."""
        if self.engine.get_tensor_mode(name) == TensorIOMode.INPUT:
            return self.shapes[name]
        zeros = {each.name: np.zeros(self.shapes[each.name], type_of(each))
                 for each in self.engine.session.get_inputs()}
        key = tuple(sorted(self.shapes.items()))
        if key not in self.results:
            self.results[key] = {each.name: array.shape for each, array in zip(
                self.engine.session.get_outputs(), self.engine.session.run(None, zeros))}
        return self.results[key][name]

    def execute_async_v3(self, stream_handle):
        session = self.engine.session
        unset = [name for name in self.engine.tensors if name not in self.addresses]
        unset += [each.name for each in session.get_inputs() if each.name not in self.shapes]
        if unset:
            self.engine.logger.error(f"Address or shape is not set for {unset[0]}")
            return False
        feeds = {}
        for each in session.get_inputs():
            kind = np.dtype(nptype(self.engine.get_tensor_dtype(each.name)))
            shape = self.shapes[each.name]
            raw = ctypes.string_at(self.addresses[each.name], int(np.prod(shape)) * kind.itemsize)
            feeds[each.name] = np.frombuffer(raw, kind).reshape(shape).astype(type_of(each))
        for each, array in zip(session.get_outputs(), session.run(None, feeds)):
            made = np.ascontiguousarray(array, np.float32)
            ctypes.memmove(self.addresses[each.name], made.ctypes.data, made.nbytes)
        return True


def type_of(tensor):
    return {"tensor(int64)": np.int64, "tensor(float)": np.float32}[tensor.type]


def in_half(model, kept):
    """Round the weights, and what each node hands on, to half precision, but for the nodes in `kept`."""
    from onnx import TensorProto, helper, numpy_helper, shape_inference

    inferred = shape_inference.infer_shapes(model).graph
    floats = {each.name for each in [*inferred.value_info, *inferred.output]
              if each.type.tensor_type.elem_type == TensorProto.FLOAT}
    largest = float(np.finfo(np.float16).max)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:  # to the closest finite number, as TensorRT does
            values = np.clip(numpy_helper.to_array(tensor), -largest, largest).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        for number, name in enumerate(node.output):
            if name in floats and node.name not in kept and node.op_type != "Constant":
                node.output[number] = f"{name}/exact"
                nodes += [helper.make_node("Cast", [f"{name}/exact"], [f"{name}/half"], to=TensorProto.FLOAT16),
                          helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
