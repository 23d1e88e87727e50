"""Constants as safetensors that can be used where they lie: every tensor starts at a multiple of 64 bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 and the small floats with numpy)
import numpy as np

from dlc.errors import DlcError

ALIGNMENT = 64

_NAMES = {
    "bool": "BOOL", "int8": "I8", "uint8": "U8", "int16": "I16", "uint16": "U16", "int32": "I32", "uint32": "U32",
    "int64": "I64", "uint64": "U64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "complex64": "C64",
}  # fmt: skip
_DTYPES = {code: name for name, code in _NAMES.items()}
_PAD = "pad."  # safetensors allows no holes, so the gaps between aligned tensors are tensors too
_KIND = "dtype."  # metadata: the numpy dtype of a tensor that safetensors has no name for and that is stored as bytes


def _aligned(size: int) -> int:
    return -size % ALIGNMENT


def safetensors_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Tensors as a safetensors file, sorted by name; data start and every tensor at multiples of 64 bytes.

    Any safetensors reader opens it. Gaps are tensors called ``pad.N``; dtypes that the format lacks (int4, some small
    floats) are stored one element a byte, with their name in the metadata.
    """
    header: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    chunks: list[bytes] = []
    offset = 0
    for name in sorted(tensors):
        if name.startswith(_PAD) or name == "__metadata__":
            raise ValueError(f"a tensor cannot be called {name!r}")
        array = np.ascontiguousarray(tensors[name]).reshape(np.shape(tensors[name]))
        dtype = str(array.dtype)
        code = _NAMES.get(dtype)
        if code is None:
            if array.dtype.itemsize != 1:
                raise ValueError(f"tensor {name!r}: dtype {dtype} cannot be stored")
            metadata[f"{_KIND}{name}"] = dtype
            code = "U8"
        data = array.tobytes()
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [offset, offset + len(data)]}
        chunks.append(data)
        offset += len(data)
        gap = _aligned(offset)
        if gap:
            label = f"{_PAD}{len(chunks)}"
            header[label] = {"dtype": "U8", "shape": [gap], "data_offsets": [offset, offset + gap]}
            chunks.append(bytes(gap))
            offset += gap
    if metadata:
        header["__metadata__"] = metadata
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * _aligned(8 + len(text))
    return b"".join((struct.pack("<Q", len(text)), text, *chunks))


def _align(data: memoryview) -> memoryview:
    """The same bytes at an aligned address: a copy only where they do not lie at one already."""
    array = np.frombuffer(data, np.uint8)
    if array.ctypes.data % ALIGNMENT == 0:
        return data
    room = np.empty(array.size + ALIGNMENT, np.uint8)
    start = _aligned(room.ctypes.data)
    copy = room[start : start + array.size]
    copy[:] = array
    copy.flags.writeable = False
    return copy.data


def open_constants(data: memoryview | bytes, where: str = "constants") -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as read-only arrays on its bytes, each 64-byte aligned.

    Raises:
        DlcError: the bytes are not such a file; `where` names it.
    """
    try:
        view = _align(memoryview(data).cast("B"))
        (length,) = struct.unpack("<Q", view[:8])
        header = json.loads(bytes(view[8 : 8 + length]))
        metadata = header.pop("__metadata__", {})
        body = view[8 + length :]
        found = {}
        for name, entry in header.items():
            if name.startswith(_PAD):
                continue
            begin, end = entry["data_offsets"]
            dtype = np.dtype(metadata.get(f"{_KIND}{name}", _DTYPES[entry["dtype"]]))
            # numpy refuses to look at an empty buffer
            flat = np.frombuffer(body[begin:end], dtype) if end > begin else np.empty(0, dtype)
            array = flat.reshape(entry["shape"])
            array.flags.writeable = False
            found[name] = array
        return found
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise DlcError(f"{where}: not a safetensors file: {error}") from error
