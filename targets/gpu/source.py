"""The text of a kernel: one body in the common part of OpenCL C and CUDA C, and a prelude for each language.

A kernel is scheduled and written once. What the languages spell differently (address spaces, barriers, indices, the
dot product of bytes) is a macro or function that the two preludes define, so the bodies are the same characters in
both, and what runs under OpenCL is what nvcc compiles.

Floats: neither text may contract ``a * b + c`` (OpenCL: the pragma; nvcc: ``-fmad=false``), divisions are correctly
rounded (build options of either compiler), and a sum that may be fused says ``fma``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.ir.serial import extent_text

_COMMON = """\
DEVICE u32 power_u32(u32 a, u32 b) { u32 r = 1; for (; b; b >>= 1, a *= a) if (b & 1) r *= a; return r; }
DEVICE u64 power_u64(u64 a, u64 b) { u64 r = 1; for (; b; b >>= 1, a *= a) if (b & 1) r *= a; return r; }
"""

OPENCL_PRELUDE = (
    """\
#pragma OPENCL FP_CONTRACT OFF
#define KERNEL(threads) __kernel __attribute__((reqd_work_group_size(threads, 1, 1))) void
#define GLOBAL __global
#define SHARED __local
#define RESTRICT restrict
#define DEVICE static
#define BARRIER() barrier(CLK_LOCAL_MEM_FENCE)
#define BLOCK(axis) ((int)get_group_id(axis))
#define THREAD ((int)get_local_id(0))
typedef char i8; typedef uchar u8; typedef short i16; typedef ushort u16; typedef int i32; typedef uint u32;
typedef long i64; typedef ulong u64; typedef float f32;
#ifdef cl_khr_fp64
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
typedef double f64;
#endif
/* sum + the products of four unsigned bytes with four signed ones */
DEVICE i32 dot4(u32 a, u32 b, i32 sum) {
  const uchar4 x = as_uchar4(a); const char4 y = as_char4(b);
  return (i32)((u32)sum + (u32)(x.s0 * y.s0 + x.s1 * y.s1 + x.s2 * y.s2 + x.s3 * y.s3));
}
"""
    + _COMMON
)

CUDA_PRELUDE = (
    """\
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
#define GLOBAL
#define SHARED __shared__
#define RESTRICT __restrict__
#define DEVICE static __device__ __forceinline__
#define BARRIER() __syncthreads()
#define BLOCK(axis) ((int)((axis) == 0 ? blockIdx.x : (axis) == 1 ? blockIdx.y : blockIdx.z))
#define THREAD ((int)threadIdx.x)
typedef signed char i8; typedef unsigned char u8; typedef short i16; typedef unsigned short u16; typedef int i32;
typedef unsigned int u32; typedef long long i64; typedef unsigned long long u64; typedef float f32; typedef double f64;
/* sum + the products of four unsigned bytes with four signed ones */
DEVICE i32 dot4(u32 a, u32 b, i32 sum) {
  i32 r;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(sum));
  return r;
}
"""
    + _COMMON
)

_C_TYPES = {
    "bool": "u8", "int8": "i8", "uint8": "u8", "int16": "i16", "uint16": "u16", "int32": "i32", "uint32": "u32",
    "int64": "i64", "uint64": "u64", "float32": "f32", "float64": "f64",
}  # fmt: skip
UNSUPPORTED = "elements of {}"


def c_type(dtype: str) -> str:
    """The C type of elements in memory and in registers; bools are bytes 0 and 1.

    Raises:
        DlcError: a type that GPU kernels do not have (float16, bfloat16).
    """
    if dtype not in _C_TYPES:
        raise DlcError(UNSUPPORTED.format(dtype))
    return _C_TYPES[dtype]


def has_type(dtype: str) -> bool:
    """Whether kernels can hold elements of `dtype`."""
    return dtype in _C_TYPES


def literal(value: Any, dtype: str) -> str:
    """A constant of `dtype`, exactly."""
    if dtype == "bool":
        return "1" if value else "0"
    if dtype.startswith("float"):
        number = float(np.asarray(value, dtype))
        if not np.isfinite(number):
            return "NAN" if np.isnan(number) else "INFINITY" if number > 0 else "(-INFINITY)"
        text = f"{number:.9g}" if dtype == "float32" else f"{number:.17g}"
        text += "" if "." in text or "e" in text else ".0"
        text += "f" if dtype == "float32" else ""
        return f"({text})" if text.startswith("-") else text
    number = int(value)
    if dtype.endswith("64"):
        if number == -(2**63):
            return "((i64)(-9223372036854775807L - 1))"
        return f"(({_C_TYPES[dtype]}){number}{'UL' if dtype == 'uint64' else 'L'})"
    if number == -(2**31):
        return "(-2147483647 - 1)"
    if dtype == "uint32":
        return f"{number}u"
    return f"({number})" if number < 0 else str(number)


@dataclass(frozen=True)
class GridAxis:
    """Blocks along one grid axis: the product of `extents` (ints, or symbolic extents as text) over `tile`, up."""

    extents: tuple[int | str, ...]
    tile: int = 1

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {"extents": list(self.extents), "tile": self.tile}


@dataclass
class Kernel:
    """A scheduled kernel.

    Attributes:
        body: its parameters and statements; `text` adds the name.
        operands: what each pointer parameter is: the name of a value of the region, or a constant array.
        dims: the symbolic extents that follow the pointers as ints.
        grid, threads: the launch: up to three axes of blocks, threads of a block.
        shared: bytes of shared memory.
        kind, tile, note: for the explanation.
    """

    body: str
    operands: list[str | np.ndarray]
    dims: list[str]
    grid: tuple[GridAxis, ...]
    threads: int
    shared: int = 0
    kind: str = ""
    tile: str = ""
    note: str = ""

    def text(self, symbol: str) -> str:
        """The definition, without a prelude."""
        return f"KERNEL({self.threads}) {symbol}{self.body}"


@dataclass
class Writer:
    """Writes one kernel: parameters as they are first used, statements, shared arrays.

    `output` names the value that the kernel writes (parameter ``out``). Positions are 32-bit: `lower` refuses and the
    runtime checks tensors that need more.
    """

    output: str
    output_dtype: str
    lines: list[str] = field(default_factory=list)
    shared_lines: list[str] = field(default_factory=list)
    shared: int = 0
    depth: int = 1
    counter: int = 0
    _pointers: dict[str, tuple[str, str]] = field(default_factory=dict)  # value -> (parameter, C type)
    _operands: list[str | np.ndarray] = field(default_factory=list)
    _dims: dict[str, str] = field(default_factory=dict)

    def line(self, text: str) -> None:
        """Write a statement."""
        self.lines.append("  " * self.depth + text)

    @contextmanager
    def block(self, header: str) -> Iterator[None]:
        """Statements between braces."""
        self.line(f"{header} {{")
        self.depth += 1
        yield
        self.depth -= 1
        self.line("}")

    def fresh(self, prefix: str) -> str:
        """A new name; the underscore keeps it apart from types such as i32."""
        self.counter += 1
        return f"{prefix}_{self.counter}"

    def let(self, ctype: str, expression: str, prefix: str = "v") -> str:
        """Name a value; names and numbers stay as they are."""
        if expression.isidentifier() or expression.isdigit():
            return expression
        name = self.fresh(prefix)
        self.line(f"const {ctype} {name} = {expression};")
        return name

    def extent(self, dim: Any) -> str:
        """An extent as C text: a number, or a parameter for each distinct symbolic expression."""
        if isinstance(dim, int | np.integer):
            return str(int(dim))
        return self._dims.setdefault(str(extent_text(dim)), f"d{len(self._dims)}")

    def pointer(self, name: str, dtype: str) -> str:
        """The parameter through which a value is read."""
        if name not in self._pointers:
            self._pointers[name] = (f"a{len(self._pointers)}", c_type(dtype))
            self._operands.append(name)
        return self._pointers[name][0]

    def constant(self, array: np.ndarray) -> str:
        """The parameter through which an array made by the compiler is read."""
        parameter = f"a{len(self._pointers)}"
        self._pointers[f"constant {parameter}"] = (parameter, c_type(str(array.dtype)))
        self._operands.append(np.ascontiguousarray(array))
        return parameter

    def shared_array(self, name: str, dtype: str, extents: Sequence[int]) -> None:
        """Declare an array in shared memory."""
        self.shared_lines.append(f"  SHARED {c_type(dtype)} {name}{''.join(f'[{e}]' for e in extents)};")
        self.shared += int(np.prod(extents)) * np.dtype(dtype).itemsize

    def finish(self, grid: Sequence[GridAxis], threads: int, **facts: str) -> Kernel:
        """The kernel."""
        parameters = [f"GLOBAL const {ctype}* RESTRICT {name}" for name, ctype in self._pointers.values()]
        parameters += [f"GLOBAL {c_type(self.output_dtype)}* RESTRICT out"]
        parameters += [f"const int {name}" for name in self._dims.values()]
        body = "\n".join([f"({', '.join(parameters)}) {{", *self.shared_lines, *self.lines, "}", ""])
        return Kernel(body, self._operands, list(self._dims), tuple(grid), threads, self.shared, **facts)
