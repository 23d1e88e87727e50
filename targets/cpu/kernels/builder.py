"""What every CPU kernel generator builds with: operands with strides, vectors, stack accumulators, one C-ABI function.

A kernel is a `PrimFunc` with raw pointers (operands in order) and then one int64 per symbolic dimension. It is opaque
to TVM: nothing fuses or schedules it afterwards. Every operand is a buffer of its own (the function is `noalias`): a
caller never passes memory that one operand writes as another operand too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from dlc.targets.layout import Expr, Layout

SHARED = "dlc.shared"  # attribute of a kernel that takes a part of its work
TURNS = "dlc.turns"  # attribute of a kernel that takes the direction in which it reads its weights
C_ABI = 3  # tvm::CallingConv: plain C arguments, no packed-call wrapper

# Types that lie in memory as another one: bool as numpy's bytes, short floats as their bits, short integers in a byte.
_IN_A_BYTE = (
    "bool", "float8_e5m2", "float8_e4m3fn", "float8_e5m2fnuz", "float8_e4m3fnuz", "float4_e2m1fn", "int4", "uint4",
    "int2", "uint2",
)  # fmt: skip
STORAGE = {"float16": "uint16", "bfloat16": "uint16", **dict.fromkeys(_IN_A_BYTE, "uint8")}


@dataclass(frozen=True)
class Operand:
    """One tensor parameter inside a kernel: a flat buffer and the layout of the tensor in it.

    `load` gives what lies in memory (`storage`); `store` also takes the type that the kernels compute with.
    """

    name: str
    dtype: str
    layout: Layout
    buffer: Any = field(compare=False, default=None)

    @property
    def storage(self) -> str:
        """Type of the elements in memory."""
        return STORAGE.get(self.dtype, self.dtype)

    def load(self, index: Sequence[Expr], lanes: int = 1, mask: Expr = None) -> Expr:
        """Load `lanes` elements that are contiguous along the last dimension (its stride must be 1)."""
        return load(self.buffer, self.storage, self.layout.flat(index), lanes, mask)

    def store(self, index: Sequence[Expr], value: Expr, lanes: int = 1, mask: Expr = None) -> None:
        """Store what `load` with the same arguments would read."""
        if self.dtype in STORAGE:
            from dlc.targets.cpu.kernels.storage import narrow

            value = narrow(value, self.dtype)
        store(self.buffer, self.layout.flat(index), value, lanes, mask)


def vector_type(dtype: str, lanes: int) -> str:
    """TVM's name of a vector type: ``float32x16``; a scalar for one lane."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def positions(base: Expr, lanes: int) -> Expr:
    """`lanes` consecutive flat positions from `base`."""
    return base if lanes == 1 else T.ramp(base, 1, lanes)


def splat(value: Expr, lanes: int) -> Expr:
    """The scalar `value` in all lanes."""
    return value if lanes == 1 else T.broadcast(value, lanes)


def load(buffer: Any, dtype: str, base: Expr, lanes: int = 1, mask: Expr = None) -> Expr:
    """Load consecutive elements of a flat buffer; masked lanes read nothing and give zero."""
    if mask is None:
        return buffer[positions(base, lanes)]
    # Held: inside a selection, TVM's analyser takes its condition for true, and so the load's own mask, which is the
    # same; the load then reads all lanes.
    loaded = hold(T.masked_load(vector_type(dtype, lanes), buffer, positions(base, lanes), mask))
    # TVM leaves the other lanes undefined (LLVM's poison spreads through logic and sums); the selection costs nothing.
    zero = tirx.FloatImm(dtype, 0.0) if "float" in dtype else tirx.IntImm(dtype, 0)
    return T.Select(mask, loaded, splat(zero, lanes))


def store(buffer: Any, base: Expr, value: Expr, lanes: int = 1, mask: Expr = None) -> None:
    """Store consecutive elements of a flat buffer; masked lanes are left as they were."""
    if mask is None:
        T.buffer_store(buffer, value, [positions(base, lanes)])
    else:
        T.evaluate(T.masked_store(buffer, _settled(value, lanes), positions(base, lanes), mask))


def _settled(value: Expr, lanes: int) -> Expr:
    """`value` as it is, with LLVM kept from merging a narrowing into the masked store of it.

    LLVM 22 turns a masked store whose mask is known to have one lane into a store of that element, and forgets the
    narrowing: an int32 narrowed to uint8 is written with all four bytes. A fence, no instruction, ends the pattern.
    """
    dtype = str(value.ty.dtype)
    size = tvm.DataType(dtype.partition("x")[0]).bits
    if lanes == 1 or size > 16 or lanes * size % 32:
        return value
    return T.reinterpret(dtype, _fenced(T.reinterpret(vector_type("float32", lanes * size // 32), value)))


def tail_mask(count: Expr, lanes: int) -> Expr:
    """A mask that is true in the first `count` of `lanes` lanes."""
    return T.ramp(T.int32(0), 1, lanes) < T.broadcast(T.cast(count, "int32"), lanes)


def let(value: Expr) -> Expr:
    """Name a value: computed once, kept in a register.

    Scalar integers are bound, so that TVM can reason about indices; all else is held (see `hold`).
    """
    if isinstance(value, int | float):
        return T.bind(value)
    dtype = str(value.ty.dtype)
    return T.bind(value) if "x" not in dtype and "float" not in dtype else hold(value)


def hold(value: Expr) -> Expr:
    """Name a value that TVM's analyser must not see through: it goes by a stack slot, which LLVM makes a register.

    The analyser substitutes a binding into every later one: compile time then grows exponentially with the depth of a
    computation (minutes for one power function), float algebra such as ``x - ((x + 1) - 1)`` is "simplified" to zero,
    and long chains of selects make it fail.
    """
    kind, _, lanes = str(value.ty.dtype).partition("x")
    count = int(lanes or 1)
    if kind == "bool":  # bytes in memory
        one, zero = (splat(T.uint8(i), count) for i in (1, 0))
        return T.NE(hold(T.Select(value, one, zero)), zero)
    buffer, begin = _slot(kind, count)
    T.buffer_store(buffer, value, [positions(begin, count)])
    return buffer[positions(begin, count)]


_SLOTS = 64
# (dtype, lanes) -> [depth and frame that declares it, buffer, slots taken]: where the next value of that type goes.
_chunks: dict[tuple[str, int], list[Any]] = {}


def _slot(dtype: str, lanes: int) -> tuple[Any, int]:
    """(buffer, first element) of a fresh stack slot.

    Slots come from buffers of many, because each declaration nests one frame deeper in TVM's builder, and a thousand
    of them overflow the native stack. A buffer serves as long as the frame that declares it is open.
    """
    chunk, frames = _chunks.get((dtype, lanes)), IRBuilder.current().frames
    if chunk is not None and chunk[3] < _SLOTS and chunk[0] < len(frames) and chunk[1].same_as(frames[chunk[0]]):
        chunk[3] += 1
    else:
        buffer = stack(dtype, lanes * _SLOTS)
        frames = IRBuilder.current().frames
        chunk = _chunks[dtype, lanes] = [len(frames) - 1, frames[-1], buffer, 1]
    return chunk[2], (chunk[3] - 1) * lanes


def unfused_add(a: Expr, b: Expr) -> Expr:
    """The float sum a + b, rounded on its own even where `a` or `b` is a product.

    TVM lets LLVM contract ``x * y + z`` into a fused multiply-add wherever the target has one, so the last bit of a
    plain sum would depend on the instruction set. `llvm.arithmetic.fence` costs no instruction and forbids it.
    """
    return _fenced(a) + _fenced(b)


def _fenced(value: Expr) -> Expr:
    # Always: a variable or a stack element may hold a product as well, and LLVM looks through both.
    return T.call_llvm_pure_intrin(str(value.ty.dtype), "llvm.arithmetic.fence", value)


def stack(dtype: str, count: int) -> Any:
    """A buffer of `count` elements on the stack; with constant vector indices LLVM keeps it in registers."""
    nbytes = count * tvm.DataType(dtype).bits // 8
    data = T.bind(T.tvm_stack_alloca("tvm_ffi_any", -(-nbytes // 8)))
    return T.decl_buffer((count,), dtype, data=data)


@dataclass(frozen=True)
class Share:
    """Which part of a kernel's work a call does: number `part` of `parts`, both int64 and known only when running."""

    part: Expr
    parts: Expr

    def bounds(self, count: Expr) -> tuple[Expr, Expr]:
        """The first and the end of this part's steps of `count`."""
        whole = T.int64(count) if isinstance(count, int) else count
        low, high = (let(T.truncdiv(whole * i, self.parts)) for i in (self.part, self.part + T.int64(1)))
        return low, high

    @staticmethod
    def best(counts: Sequence[Expr]) -> int:
        """Which of nested loops, outermost first, parts are most nearly equal of; symbolic extents count as long."""

        def evenness(count: Expr) -> float:
            return count / (4 * -(-count // 4)) if isinstance(count, int) and count else 1.0

        return max(range(len(counts)), key=lambda i: (evenness(counts[i]), -i))


#: Elements from which on a kernel without multiplications is shared out: some ten microseconds of work.
SHARED_ELEMENTS = 1 << 15


def is_long(shape: Sequence[Expr]) -> bool:
    """Whether a kernel over a tensor of this shape is shared out; a symbolic extent stands for a long one."""
    known = prod(d for d in shape if isinstance(d, int))
    return known >= SHARED_ELEMENTS or (known > 0 and not all(isinstance(d, int) for d in shape))


@dataclass
class Kernel:
    """A kernel under construction; `func` is the finished PrimFunc, `share` what one that is shared out computes,
    `turn` the direction of one that turns."""

    name: str
    operands: tuple[Operand, ...] = ()
    share: Share | None = None
    turn: Expr = None
    func: Any = None


@contextmanager
def kernel(
    name: str,
    operands: Sequence[tuple[str, str, Layout]],
    dims: Sequence[Any] = (),
    attrs: dict[str, Any] | None = None,
    shared: bool = False,
    turns: bool = False,
) -> Iterator[Kernel]:
    """Open a kernel called `name` over `operands` (name, dtype, layout) and symbolic `dims` (tirx int64 Vars).

    The body of the ``with`` statement emits TIR through `kernel.operands`; `kernel.func` is set when it closes.
    One that `turns` takes an int64 more, 1 where it is to go through its weights backwards (`kernel.turn`).
    One that is `shared` takes two int64 more, the part that it computes and how many there are; its emitter must ask
    `kernel.share` in every loop that stores.
    """
    result = Kernel(name)
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_name(name)
            T.func_attr({"global_symbol": name, "tirx.noalias": True, "calling_conv": C_ABI, **(attrs or {})})
            if shared:
                T.func_attr({SHARED: True})
            if turns:
                T.func_attr({TURNS: True})
            stored = [STORAGE.get(dtype, dtype) for _, dtype, _ in operands]
            pointers = [T.arg(f"p_{o[0]}", T.handle(kind)) for o, kind in zip(operands, stored, strict=True)]
            for var in dims:
                T.arg(var.name, var)
            if turns:
                result.turn = T.arg("turn", symbolic("turn"))
            if shared:
                result.share = Share(*(T.arg(name, symbolic(name)) for name in ("part", "parts")))
            result.operands = tuple(
                Operand(label, dtype, layout, T.decl_buffer((layout.size,), kind, data=pointer))
                for pointer, kind, (label, dtype, layout) in zip(pointers, stored, operands, strict=True)
            )
            yield result
        result.func = builder.get()


def symbolic(name: str) -> Any:
    """A symbolic dimension."""
    return tirx.Var(name, "int64")
