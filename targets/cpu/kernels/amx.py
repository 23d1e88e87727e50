"""The tile instructions of AMX as descriptions: how each is emitted, and what it means.

A processor without AMX can run the same kernels: every instruction carries its *meaning*, TIR that does on stack memory
exactly what the hardware does to its tiles, including the rows and the bytes per row that `ldtilecfg` gave each tile. A
wrong configuration therefore computes something wrong there, too. Where the hardware raises an exception, the emulation
turns everything that is stored afterwards into `POISON`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from dlc.targets.cpu.kernels.builder import Expr, let, load, splat, stack, store, tail_mask

TILES = 8
ROWS = 16  # at most, of one tile
ROW_BYTES = 64  # at most
LANES = 16  # 32-bit elements of a full row
GROUP = 4  # bytes that one multiply-add sums up
CONFIG_BYTES = 64
POISON = -0x5A5A5A5B
_VECTOR_DOT = "llvm.x86.avx512.vpdpbusd.512"  # u8 x s8, the same exact sums for one row and one group of k


@dataclass(frozen=True)
class Memory:
    """An operand in memory: the element of a flat buffer of `dtype` at position `at`."""

    buffer: Any
    dtype: str
    at: Expr


class TileFile:
    """The registers of the emulation: contents, configuration, and whether an exception was raised."""

    def __init__(self) -> None:
        self.content = stack("int32", TILES * ROWS * LANES)
        self.rows = stack("int64", TILES)
        self.bytes = stack("int64", TILES)
        self.fault = stack("int64", 1)  # not zero after an exception
        self.total = stack("int32", LANES)
        T.buffer_store(self.fault, T.int64(0), [0])
        self.clear()

    def clear(self) -> None:
        """The initial state: nothing configured."""
        with T.serial(T.int64(0), T.int64(TILES)) as tile:
            T.buffer_store(self.rows, T.int64(0), [tile])
            T.buffer_store(self.bytes, T.int64(0), [tile])
        self.zero(0, TILES)

    def zero(self, tile: int, count: int = 1) -> None:
        """All bytes of `count` tiles become zero."""
        with T.serial(T.int64(0), T.int64(count * ROWS)) as row:
            self.write(tile, row, splat(T.int32(0), LANES))

    def read(self, tile: int, row: Expr) -> Expr:
        """One row as 16 int32."""
        return self.content[T.ramp((tile * ROWS + row) * LANES, 1, LANES)]

    def write(self, tile: int, row: Expr, value: Expr) -> None:
        """Replace one row."""
        T.buffer_store(self.content, value, [T.ramp((tile * ROWS + row) * LANES, 1, LANES)])

    def raise_unless(self, *equal: tuple[Expr, Expr]) -> None:
        """What would be #UD or #GP where a pair of numbers differs: everything stored from here on is poison."""
        wrong: Expr = self.fault[0]
        for left, right in equal:
            wrong = T.bitwise_or(wrong, T.bitwise_xor(left, right))
        T.buffer_store(self.fault, wrong, [0])

    def used(self, tile: int) -> tuple[Expr, Expr]:
        """The pair for `raise_unless` that says that the tile has rows: all others are invalid operands."""
        return T.min(self.rows[tile], T.int64(1)), T.int64(1)


def _mean_configure(state: TileFile, config: Memory) -> None:
    def byte(at: Expr) -> Expr:
        return T.cast(config.buffer[config.at + at], "int64")

    state.clear()
    state.raise_unless((byte(0), T.int64(1)))  # palette 0 is what `tilerelease` is for
    # Byte 1 restarts an interrupted load; 2-15, the tiles 8-15 and the rest are reserved.
    for begin, end in ((1, 16), (16 + 2 * TILES, 48), (48 + TILES, CONFIG_BYTES)):
        with T.serial(T.int64(begin), T.int64(end)) as at:
            state.raise_unless((byte(at), T.int64(0)))
    with T.serial(T.int64(0), T.int64(TILES)) as tile:
        rows = let(byte(tile + 48))
        width = let(byte(tile * 2 + 16) + byte(tile * 2 + 17) * 256)
        T.buffer_store(state.rows, T.min(rows, T.int64(ROWS)), [tile])
        T.buffer_store(state.bytes, T.min(width, T.int64(ROW_BYTES)), [tile])
        state.raise_unless(
            (rows, state.rows[tile]),
            (width, state.bytes[tile]),
            (T.min(rows, T.int64(1)), T.min(width, T.int64(1))),  # a tile has both or neither
        )


def _mean_release(state: TileFile) -> None:
    state.clear()


def _mean_zero(state: TileFile, tile: int) -> None:
    state.raise_unless(state.used(tile))
    state.zero(tile)


def _mean_load(state: TileFile, tile: int, memory: Memory, stride: Expr) -> None:
    state.raise_unless(state.used(tile))
    state.zero(tile)  # also the rows and bytes that are not configured
    size = 4 if memory.dtype == "int32" else 1
    lanes = ROW_BYTES // size
    mask = tail_mask(T.truncdiv(state.bytes[tile] + (size - 1), T.int64(size)), lanes)
    with T.serial(T.int64(0), state.rows[tile]) as row:
        at = memory.at + row * T.truncdiv(stride, T.int64(size))
        value = load(memory.buffer, memory.dtype, at, lanes, mask)
        state.write(tile, row, value if size == 4 else T.reinterpret(f"int32x{LANES}", value))


def _mean_dot(state: TileFile, into: int, a: int, b: int) -> None:
    rows, width = state.rows, state.bytes
    ragged = T.bitwise_and(T.bitwise_or(width[into], width[a]), T.int64(GROUP - 1))
    state.raise_unless(
        state.used(into),
        state.used(b),
        (rows[into], rows[a]),
        (width[a], rows[b] * GROUP),
        (width[into], width[b]),
        (ragged, T.int64(0)),
    )
    total, whole = state.total, [T.ramp(0, 1, LANES)]
    with T.serial(T.int64(0), rows[into]) as row:
        T.buffer_store(total, state.read(into, row), whole)
        with T.serial(T.int64(0), rows[b]) as k:
            word = state.content[(a * ROWS + row) * LANES + k]
            left = T.reinterpret(f"int8x{ROW_BYTES}", splat(word, LANES))
            right = T.reinterpret(f"int8x{ROW_BYTES}", state.read(b, k))
            value = T.call_llvm_pure_intrin(f"int32x{LANES}", _VECTOR_DOT, total[whole[0]], left, right)
            T.buffer_store(total, value, whole)
        state.write(into, row, total[whole[0]])


def _mean_store(state: TileFile, tile: int, memory: Memory, stride: Expr) -> None:
    assert memory.dtype == "int32"
    state.raise_unless(state.used(tile))
    fault = let(state.fault[0])
    rows, lanes = state.rows[tile], T.truncdiv(state.bytes[tile] + 3, T.int64(4))
    count, mask = let(_unless(fault, rows, T.int64(ROWS))), tail_mask(_unless(fault, lanes, T.int64(LANES)), LANES)
    with T.serial(T.int64(0), count) as row:
        at = memory.at + row * T.truncdiv(stride, T.int64(4))
        faulty = splat(fault, LANES) != splat(T.int64(0), LANES)
        store(memory.buffer, at, T.Select(faulty, splat(T.int32(POISON), LANES), state.read(tile, row)), LANES, mask)


def _unless(fault: Expr, value: Expr, otherwise: Expr) -> Expr:
    return T.Select(fault == T.int64(0), value, otherwise)


@dataclass(frozen=True)
class Instruction:
    """One tile instruction.

    Attributes:
        name: the mnemonic in assembly.
        intrinsic: what LLVM calls it; tile numbers are immediates.
        meaning: (state, operands...) -> TIR that does the same to a `TileFile`.
    """

    name: str
    intrinsic: str
    meaning: Callable[..., None]


LDTILECFG = Instruction("ldtilecfg", "llvm.x86.ldtilecfg", _mean_configure)
TILERELEASE = Instruction("tilerelease", "llvm.x86.tilerelease", _mean_release)
TILEZERO = Instruction("tilezero", "llvm.x86.tilezero", _mean_zero)
TILELOADD = Instruction("tileloadd", "llvm.x86.tileloadd64", _mean_load)
TILELOADDT1 = Instruction("tileloaddt1", "llvm.x86.tileloaddt164", _mean_load)  # the same, but do not keep it in L1
TDPBUSD = Instruction("tdpbusd", "llvm.x86.tdpbusd", _mean_dot)
TILESTORED = Instruction("tilestored", "llvm.x86.tilestored64", _mean_store)
INSTRUCTIONS = (LDTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILELOADDT1, TDPBUSD, TILESTORED)


class TileUnit:
    """Emits tile instructions, as themselves or as their meaning."""

    def __init__(self, emulated: bool) -> None:
        self.state = TileFile() if emulated else None

    def emit(self, instruction: Instruction, *operands: Any) -> None:
        """Operands are tile numbers (int), `Memory`, or a stride in bytes (an int64 expression)."""
        if self.state is not None:
            instruction.meaning(self.state, *operands)
            return
        T.evaluate(T.call_llvm_intrin("void", instruction.intrinsic, *map(_lowered, operands)))

    def configure(self, shapes: Sequence[tuple[Expr, Expr]]) -> None:
        """Load the configuration of the tiles 0, 1, ...: (rows, bytes per row) of each."""
        config = stack("uint8", CONFIG_BYTES)
        content: list[Expr] = [0] * CONFIG_BYTES
        content[0] = 1
        for tile, (rows, width) in enumerate(shapes):
            content[16 + 2 * tile], content[48 + tile] = width, rows  # a row has less than 256 bytes
        for at, value in enumerate(content):
            T.buffer_store(config, T.uint8(value) if isinstance(value, int) else T.cast(value, "uint8"), [at])
        self.emit(LDTILECFG, Memory(config, "uint8", 0))


def _lowered(operand: Any) -> Expr:
    if isinstance(operand, Memory):
        return T.address_of(operand.buffer[operand.at])
    return T.int8(operand) if isinstance(operand, int) else operand


def aligned_stack(dtype: str, count: int) -> Any:
    """A buffer on the stack that begins on a cache line: a row of a tile then never touches two of them."""
    element = {"int32": 4, "float32": 4, "int16": 2, "uint8": 1}[dtype]
    spare = ROW_BYTES // element
    raw = stack(dtype, count + spare)
    last = T.address_of(raw[spare - 1])
    data = T.bind(T.call_llvm_pure_intrin("handle", "llvm.ptrmask", last, T.int64(-ROW_BYTES)))
    return T.decl_buffer((count,), dtype, data=data)
