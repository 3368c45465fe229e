"""cuda-bindings' names that the worker of TensorRT uses, on the host's memory; a test compares them with the real ones.

It refuses addresses that were not allocated, and copies beyond their end. STAND_IN_HOST says what host this is:
{"gpu": ..., "capability": "8.0", "cuda": 11050, "memory": bytes}; {"gpu": ""} has no driver.
"""
import ctypes
import enum
import json
import os

HOST = {"gpu": "NVIDIA Stand-in", "capability": "8.0", "cuda": 11050, "memory": 2**40,
        **json.loads(os.environ.get("STAND_IN_HOST", "{}"))}
_held = {}  # {address: its memory}


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidDevice = 101


class cudaDeviceProp:
    __slots__ = ("major", "minor", "name")


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


OK = cudaError_t.cudaSuccess


def cudaGetErrorString(error):
    return OK, {cudaError_t.cudaErrorMemoryAllocation: b"out of memory",
                cudaError_t.cudaErrorInvalidDevice: b"invalid device ordinal"}.get(error, b"invalid argument")


def cudaSetDevice(device):
    if not HOST["gpu"]:
        raise RuntimeError("Failed to dlopen libcuda.so.1")
    return ((OK if device == 0 else cudaError_t.cudaErrorInvalidDevice),)


def cudaGetDeviceProperties(device):
    found = cudaDeviceProp()
    found.name = HOST["gpu"].encode()
    found.major, found.minor = map(int, HOST["capability"].split("."))
    return OK, found


def cudaDriverGetVersion():
    return OK, HOST["cuda"]


def cudaStreamCreate():
    return OK, 7


def cudaStreamSynchronize(stream):
    return (OK if stream == 7 else cudaError_t.cudaErrorInvalidValue,)


def cudaMalloc(size):
    if size + sum(map(len, _held.values())) > HOST["memory"]:
        return cudaError_t.cudaErrorMemoryAllocation, 0
    memory = (ctypes.c_char * size)()
    _held[ctypes.addressof(memory)] = memory
    return OK, ctypes.addressof(memory)


def cudaFree(devPtr):
    return (OK if _held.pop(devPtr, None) is not None else cudaError_t.cudaErrorInvalidValue,)


def is_held(address, size):
    return any(start <= address and address + size <= start + len(memory) for start, memory in _held.items())


def cudaMemcpyAsync(dst, src, count, kind, stream):
    device = dst if kind == cudaMemcpyKind.cudaMemcpyHostToDevice else src
    if not is_held(device, count) or stream != 7:
        return (cudaError_t.cudaErrorInvalidValue,)
    ctypes.memmove(dst, src, count)
    return (OK,)


def cudaMemcpy2DAsync(dst, dpitch, src, spitch, width, height, kind, stream):
    if kind != cudaMemcpyKind.cudaMemcpyDeviceToHost or width > min(dpitch, spitch):
        return (cudaError_t.cudaErrorInvalidValue,)
    for row in range(height):
        error, = cudaMemcpyAsync(dst + row * dpitch, src + row * spitch, width, kind, stream)
        if error != OK:
            return (error,)
    return (OK,)
