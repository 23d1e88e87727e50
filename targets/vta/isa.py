"""The instruction set: typed records, their encoding in 128 bits, decoding, and disassembly (docs/vta.md).

Field widths follow the configuration's buffer depths. An instruction is two 64-bit words, little-endian; fields are
packed from bit 0 of each word upwards in the order of the tables below.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import ClassVar

import numpy as np

from dlc.errors import DlcError
from dlc.targets.vta.config import Config

SIZE = 16  #: bytes an instruction


class Opcode(IntEnum):
    """What an instruction does."""

    LOAD = 0
    STORE = 1
    GEMM = 2
    FINISH = 3
    ALU = 4


class Memory(IntEnum):
    """The buffer that a LOAD or STORE moves. ACC8 is ACC filled from bytes, sign-extended."""

    UOP = 0
    WGT = 1
    INP = 2
    ACC = 3
    OUT = 4
    ACC8 = 5


class AluOp(IntEnum):
    """What an ALU micro-op computes. REQ and SETQ exist where the configuration has them."""

    MIN = 0
    MAX = 1
    ADD = 2
    SHR = 3
    MUL = 4
    REQ = 5
    SETQ = 6


#: Bytes in DRAM of one element of each buffer; DRAM addresses count these.
ELEMENT_BYTES = {Memory.UOP: 4, Memory.WGT: 256, Memory.INP: 16, Memory.ACC: 64, Memory.OUT: 16, Memory.ACC8: 16}


@dataclass(frozen=True)
class Instruction:
    """What all have: the four token flags.

    Attributes:
        pop_prev, pop_next: wait for a token of the engine before or after this one.
        push_prev, push_next: give a token to that engine on completion.
    """

    opcode: ClassVar[Opcode]
    pop_prev: bool = False
    pop_next: bool = False
    push_prev: bool = False
    push_next: bool = False


@dataclass(frozen=True)
class Transfer(Instruction):
    """LOAD and STORE: a two-dimensional copy between DRAM and a buffer. Addresses and extents count elements."""

    memory: Memory = Memory.INP
    sram_base: int = 0
    dram_base: int = 0
    y_size: int = 1
    x_size: int = 0
    x_stride: int = 0
    y_pad_top: int = 0
    y_pad_bottom: int = 0
    x_pad_left: int = 0
    x_pad_right: int = 0

    @property
    def rows(self) -> int:
        """Rows of the image in the buffer."""
        return self.y_pad_top + self.y_size + self.y_pad_bottom

    @property
    def columns(self) -> int:
        """Columns of the image in the buffer."""
        return self.x_pad_left + self.x_size + self.x_pad_right


@dataclass(frozen=True)
class Load(Transfer):
    """DRAM to a buffer, with zeros around."""

    opcode: ClassVar[Opcode] = Opcode.LOAD


@dataclass(frozen=True)
class Store(Transfer):
    """OUT to DRAM."""

    opcode: ClassVar[Opcode] = Opcode.STORE
    memory: Memory = Memory.OUT


@dataclass(frozen=True)
class Loops(Instruction):
    """GEMM and ALU: two loops around a range of micro-ops, each index moving by a factor a step of each loop."""

    reset: bool = False
    uop_begin: int = 0
    uop_end: int = 0
    iter_out: int = 1
    iter_in: int = 1
    dst_factor_out: int = 0
    dst_factor_in: int = 0
    src_factor_out: int = 0
    src_factor_in: int = 0

    @property
    def steps(self) -> int:
        """Micro-ops that are executed."""
        return self.iter_out * self.iter_in * (self.uop_end - self.uop_begin)


@dataclass(frozen=True)
class Gemm(Loops):
    """``ACC[dst] += INP[src] * WGT[wgt]^T``, or ``ACC[dst] = 0`` with `reset`."""

    opcode: ClassVar[Opcode] = Opcode.GEMM
    wgt_factor_out: int = 0
    wgt_factor_in: int = 0


@dataclass(frozen=True)
class Alu(Loops):
    """``ACC[dst] = op(ACC[dst], use_imm ? imm : ACC[src])``, and OUT[dst] its low bytes."""

    opcode: ClassVar[Opcode] = Opcode.ALU
    alu_opcode: AluOp = AluOp.ADD
    use_imm: bool = False
    imm: int = 0


@dataclass(frozen=True)
class Finish(Instruction):
    """The end of a program."""

    opcode: ClassVar[Opcode] = Opcode.FINISH


@dataclass(frozen=True)
class MicroOp:
    """Indices into ACC, INP (GEMM) or ACC (ALU), and WGT."""

    dst: int = 0
    src: int = 0
    wgt: int = 0


KINDS: dict[Opcode, type[Instruction]] = {kind.opcode: kind for kind in (Load, Store, Gemm, Finish, Alu)}

# --- bits ------------------------------------------------------------------------------------------------------------

_HEADER = (("opcode", 3), ("pop_prev", 1), ("pop_next", 1), ("push_prev", 1), ("push_next", 1))
_TRANSFER = (
    (*_HEADER, ("memory", 3), ("sram_base", 16), ("dram_base", 32)),
    (("y_size", 16), ("x_size", 16), ("x_stride", 16), ("y_pad_top", 4), ("y_pad_bottom", 4), ("x_pad_left", 4),
     ("x_pad_right", 4)),
)  # fmt: skip
Layout = tuple[tuple[tuple[str, int], ...], ...]


def layout(opcode: Opcode, config: Config) -> Layout:
    """The fields of each 64-bit word, from the lowest bit: (name, width)."""
    if opcode in (Opcode.LOAD, Opcode.STORE):
        return _TRANSFER
    if opcode is Opcode.FINISH:
        return (_HEADER, ())
    loops = (("reset", 1), ("uop_begin", config.uop_bits), ("uop_end", config.uop_bits + 1), ("iter_out", 14),
             ("iter_in", 14))  # fmt: skip
    dst = (("dst_factor_out", config.acc_bits), ("dst_factor_in", config.acc_bits))
    bits = config.inp_bits if opcode is Opcode.GEMM else config.acc_bits
    src = (("src_factor_out", bits), ("src_factor_in", bits))
    last = (
        (("wgt_factor_out", config.wgt_bits), ("wgt_factor_in", config.wgt_bits))
        if opcode is Opcode.GEMM
        else (("alu_opcode", 3), ("use_imm", 1), ("imm", 16))
    )
    return ((*_HEADER, *loops), (*dst, *src, *last))


def _pack(items: Iterable[tuple[str, int]], value: Callable[[str], int], what: str) -> int:
    word = position = 0
    for name, width in items:
        number = value(name)
        low = -(1 << (width - 1)) if name == "imm" else 0
        high = (1 << (width - (name == "imm"))) - 1
        if not low <= number <= high:
            raise DlcError(f"vta: {what}: {name} is {number}, outside [{low}, {high}]")
        word |= (number & ((1 << width) - 1)) << position
        position += width
    return word


def encode(instruction: Instruction, config: Config) -> bytes:
    """The 16 bytes of an instruction.

    Raises:
        DlcError: a field does not fit its width; names it.
    """
    words = [
        _pack(items, lambda name: int(getattr(instruction, name)), disassemble(instruction))
        for items in layout(instruction.opcode, config)
    ]
    return struct.pack("<QQ", *words)


def decode(data: bytes, config: Config) -> Instruction:
    """The instruction of 16 bytes.

    Raises:
        DlcError: no such opcode, buffer or ALU operation.
    """
    words = struct.unpack("<QQ", data)
    try:
        opcode = Opcode(words[0] & 7)
        found: dict[str, int] = {}
        for word, items in zip(words, layout(opcode, config), strict=True):
            for name, width in items:
                found[name] = word & ((1 << width) - 1)
                word >>= width
            if word:
                raise ValueError("bits are set that no field has")
        return _record(KINDS[opcode], found, config)
    except ValueError as error:
        raise DlcError(f"vta: {data.hex()} is not an instruction of vta:{config.name}: {error}") from error


def _record(kind: type[Instruction], found: dict[str, int], config: Config) -> Instruction:
    del found["opcode"]
    values: dict[str, object] = dict(found)
    flags = {f.name for f in fields(kind) if f.type == "bool"}
    values |= {name: bool(found[name]) for name in flags}
    if "memory" in found:
        values["memory"] = Memory(found["memory"])
    if "imm" in found:
        operation = AluOp(found["alu_opcode"])
        if operation >= AluOp.REQ and not config.requantise:
            raise ValueError(f"the ALU has no operation {operation.name}")
        values["alu_opcode"] = operation
        values["imm"] = (found["imm"] ^ 0x8000) - 0x8000
    return kind(**values)  # type: ignore[arg-type]


def decode_program(data: bytes | memoryview, config: Config) -> list[Instruction]:
    """All instructions of a stream; DlcError names the index of a bad one."""
    if len(data) % SIZE:
        raise DlcError(f"vta: an instruction stream of {len(data)} bytes is not a multiple of {SIZE}")
    result = []
    for index in range(len(data) // SIZE):
        try:
            result.append(decode(bytes(data[index * SIZE : (index + 1) * SIZE]), config))
        except DlcError as error:
            raise DlcError(f"vta: instruction {index}: {error}") from error
    return result


def _uop_shifts(config: Config) -> tuple[int, int, int]:
    src = max(config.inp_bits, config.acc_bits)
    return config.acc_bits, src, config.wgt_bits


def pack_uops(uops: np.ndarray, config: Config) -> np.ndarray:
    """Micro-ops (n, 3) of dst, src, wgt as uint32; DlcError where an index does not fit."""
    words, position = np.zeros(len(uops), np.int64), 0
    for column, (name, width) in enumerate(zip(("dst", "src", "wgt"), _uop_shifts(config), strict=True)):
        values = uops[:, column]
        if values.min(initial=0) < 0 or values.max(initial=0) >> width:
            worst = int(values.min()) if values.min() < 0 else int(values.max())
            raise DlcError(f"vta: micro-op: {name} is {worst}, outside [0, {(1 << width) - 1}]")
        words |= values.astype(np.int64) << position
        position += width
    return words.astype(np.uint32)


def encode_uops(uops: Sequence[MicroOp], config: Config) -> np.ndarray:
    """Micro-ops as uint32; DlcError where an index does not fit."""
    return pack_uops(np.asarray([[u.dst, u.src, u.wgt] for u in uops], np.int64).reshape(-1, 3), config)


def split_uops(words: np.ndarray, config: Config) -> np.ndarray:
    """Encoded micro-ops as an int64 array (n, 3) of dst, src, wgt."""
    columns, words = [], words.astype(np.int64)
    for width in _uop_shifts(config):
        columns.append(words & ((1 << width) - 1))
        words = words >> width
    return np.stack(columns, -1)


def decode_uops(words: np.ndarray, config: Config) -> list[MicroOp]:
    """Encoded micro-ops as records."""
    return [MicroOp(*(int(i) for i in row)) for row in split_uops(words, config)]


# --- text ------------------------------------------------------------------------------------------------------------

_FLAGS = ("pop_prev", "pop_next", "push_prev", "push_next")


def _text(instruction: Instruction) -> str:
    if isinstance(instruction, Transfer):
        i = instruction
        pads = (i.y_pad_top, i.y_pad_bottom, i.x_pad_left, i.x_pad_right)
        padded = f" pad {pads}" if any(pads) else ""
        return (
            f" {i.memory.name} sram {i.sram_base} dram {i.dram_base} {i.y_size}x{i.x_size} stride {i.x_stride}{padded}"
        )
    if isinstance(instruction, Loops):
        j = instruction
        what = f".{j.alu_opcode.name}" if isinstance(j, Alu) else ""
        wgt = f" wgt {j.wgt_factor_out},{j.wgt_factor_in}" if isinstance(j, Gemm) else ""
        imm = f" imm {j.imm}" if isinstance(j, Alu) and (j.use_imm or j.imm) else ""
        tensor = " src" if isinstance(j, Alu) and not j.use_imm else ""
        factors = f" dst {j.dst_factor_out},{j.dst_factor_in} src {j.src_factor_out},{j.src_factor_in}{wgt}"
        reset = " reset" if j.reset else ""
        return f"{what}{reset} uops {j.uop_begin}:{j.uop_end} loops {j.iter_out}x{j.iter_in}{factors}{tensor}{imm}"
    return ""


def disassemble(instruction: Instruction) -> str:
    """One line of text that tells every field."""
    flags = [name for name in _FLAGS if getattr(instruction, name)]
    return f"{instruction.opcode.name}{_text(instruction)}{' ' if flags else ''}{' '.join(flags)}"
