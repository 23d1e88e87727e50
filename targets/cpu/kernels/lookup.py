"""Tables of 256 bytes in registers: a lookup of many codes without touching memory (AVX-512)."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels import vector as v
from dlc.targets.cpu.kernels.builder import Expr, Operand, hold


def in_registers(table: Operand | None, lanes: int, isa: Isa) -> bool:
    """Whether `bytes_at` can look codes up in `table`; otherwise elements are read one by one."""
    if table is None or table.dtype not in ("int8", "uint8") or not table.layout.is_dense:
        return False
    return isa.vector_bits == 512 and lanes in (16, 32, 64)


def bytes_at(table: Operand, codes: Expr) -> Expr:
    """The table's bytes (its storage type) at unsigned 8-bit `codes`; a quarter of a cycle an element."""
    lanes = v.lanes_of(codes)
    if lanes == 64:  # even and odd codes, as the halves of 16-bit lanes
        pairs = hold(T.reinterpret("uint16x32", codes))
        even = _words_at(table, hold(pairs & v.like(255, pairs)))
        odd = _words_at(table, hold(pairs >> v.like(8, pairs)))
        return T.reinterpret(f"{table.storage}x64", hold(even | (odd << v.like(8, odd))))
    wide = hold(v.convert(codes, "uint16"))
    if lanes == 16:
        wide = hold(tirx.Shuffle([wide, wide], list(range(32))))
    found = hold(_words_at(table, wide))
    if lanes == 16:
        found = hold(tirx.Shuffle([found], list(range(16))))
    return v.reinterpret(v.convert(found, "uint8"), table.storage)


def _words_at(table: Operand, index: Expr) -> Expr:
    """The bytes at 32 positions below 256, as uint16: four registers hold the table as 128 words of two bytes."""
    parts = [hold(T.reinterpret("int16x32", table.load([64 * i], 64))) for i in range(4)]
    word = hold(T.reinterpret("int16x32", index >> v.like(1, index)))
    name = "llvm.x86.avx512.vpermi2var.hi.512"  # reads six bits of each position
    low, high = (v.intrinsic(name, parts[i], word, parts[i + 1], dtype="int16x32") for i in (0, 2))
    both = T.reinterpret("uint16x32", hold(v.select(index > v.like(127, index), hold(high), hold(low))))
    shift = (index & v.like(1, index)) << v.like(3, index)
    return (both >> hold(shift)) & v.like(255, index)
