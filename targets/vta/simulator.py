"""The functional simulator: what a stream computes, with every rule of the architecture checked.

A GEMM instruction is one gather and one float32 matrix product a group of destinations: sums of at most 1,024 products
of int8 are below 2**24 and so exact in float32; longer ones are added as int32, which wraps as the hardware does. How
the indices of an instruction fall into groups is worked out once for each form of instruction (`_Plan`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlc.errors import DlcError
from dlc.targets.vta import alu
from dlc.targets.vta.config import BLOCK, Config
from dlc.targets.vta.engines import ENGINES, run_order
from dlc.targets.vta.isa import (
    ELEMENT_BYTES,
    Alu,
    AluOp,
    Gemm,
    Instruction,
    Load,
    Loops,
    Memory,
    Store,
    Transfer,
    disassemble,
    split_uops,
)

_EXACT = 1024 // BLOCK  # blocks of 16 products whose sum float32 holds exactly
_SMALL = 250_000  # multiplications of one matrix product: larger ones make BLAS start threads, which costs more here
_HAZARD = 2  # an ACC entry must not be written again by one of the next two micro-ops


class IllegalError(Exception):
    """A rule of the architecture was broken; the text says which."""


@dataclass(frozen=True)
class _Group:
    """Destinations that share operands: ``ACC[dst] += INP[src] x WGT[wgt]`` over the second axis.

    Attributes:
        dst: (columns, rows) ACC indices.
        src: (pieces, rows a piece, terms) INP indices; the last piece is filled up with repetitions.
        wgt: (columns, terms) WGT indices.
    """

    dst: np.ndarray
    src: np.ndarray
    wgt: np.ndarray


@dataclass(frozen=True)
class _Plan:
    """The indices that one form of instruction touches. `groups` is for GEMM, `ordered` for ALU (see `alu.py`)."""

    dst: np.ndarray
    src: np.ndarray
    wgt: np.ndarray
    groups: tuple[_Group, ...] = ()
    ordered: bool = False


Plans = dict[tuple[object, ...], _Plan]


def indices(instruction: Loops, uops: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dst, src and wgt of every step in execution order, from micro-ops (n, 3)."""
    outer = np.arange(instruction.iter_out)[:, None, None]
    inner = np.arange(instruction.iter_in)[None, :, None]
    result = []
    for column, name in enumerate(("dst", "src", "wgt")):
        steps = [getattr(instruction, f"{name}_factor_{level}", 0) for level in ("out", "in")]
        result.append((outer * steps[0] + inner * steps[1] + uops[None, None, :, column]).reshape(-1))
    return result[0], result[1], result[2]


def forwarding_hazard(dst: np.ndarray) -> int | None:
    """The first step whose destination one of the two steps before it wrote; None where there is none."""
    for distance in range(1, _HAZARD + 1):
        found = np.flatnonzero(dst[distance:] == dst[:-distance])
        if found.size:
            return int(found[0]) + distance
    return None


def _groups(dst: np.ndarray, src: np.ndarray, wgt: np.ndarray) -> tuple[_Group, ...]:
    order = np.argsort(dst, kind="stable")
    entries, counts = np.unique(dst, return_counts=True)
    starts = np.cumsum(counts) - counts
    groups = []
    for terms in np.unique(counts):
        chosen = counts == terms
        rows = order[starts[chosen][:, None] + np.arange(terms)[None, :]]
        places, sources, weights = entries[chosen], src[rows], wgt[rows]
        kinds, kind_of = np.unique(weights, axis=0, return_inverse=True)
        shared: dict[bytes, tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]] = {}
        for kind, row in enumerate(kinds):
            members = np.flatnonzero(kind_of.reshape(-1) == kind)
            source = sources[members]
            entry = shared.setdefault(source.tobytes(), (source, [], []))
            entry[1].append(places[members])
            entry[2].append(row)
        groups += [_Group(np.stack(d), _in_pieces(source), np.stack(w)) for source, d, w in shared.values()]
    return tuple(groups)


def _in_pieces(source: np.ndarray) -> np.ndarray:
    """(rows, terms) as (pieces, rows, terms), each piece a small matrix product."""
    rows, terms = source.shape
    size = min(rows, max(1, _SMALL // (min(terms, _EXACT) * BLOCK * BLOCK)))
    count = -(-rows // size)
    return np.pad(source, [(0, count * size - rows), (0, 0)], mode="edge").reshape(count, size, terms)


class Simulator:
    """The buffers of one accelerator and the memory that it is attached to.

    Attributes:
        dram: uint8, one dimension; read and written in place.

    `plans` may be shared by simulators of one configuration: what was worked out for one run serves the next.
    """

    def __init__(self, config: Config, dram: np.ndarray, plans: Plans | None = None) -> None:
        self.config, self.dram = config, dram
        self.uop = np.zeros((config.uops, 3), np.int64)
        self.inp = np.zeros((config.inputs, BLOCK), np.float32)  # float32 holds int8, and multiplies fast
        self.wgt = np.zeros((config.weights, BLOCK, BLOCK), np.float32)
        self.acc = np.zeros((config.accs, BLOCK), np.int32)
        self.out = np.zeros((config.accs, BLOCK), np.int8)
        depths = {"UOP": config.uops, "INP": config.inputs, "WGT": config.weights, "ACC": config.accs}
        self.loaded = {name: np.zeros(depth, bool) for name, depth in depths.items()}
        self.from_alu = np.zeros(config.accs, bool)  # whether OUT holds what an ALU instruction wrote last
        self.registers: alu.Registers | None = None
        self._plans: Plans = {} if plans is None else plans

    def run(self, program: Sequence[Instruction], preference: Sequence[str] | int = ENGINES) -> None:
        """Execute a program, its engines taking turns as `engines.run_order` says.

        Raises:
            DlcError: an illegal instruction, a deadlock, or tokens left over; names the instruction by index.
        """
        for index in run_order(program, preference):
            try:
                self.execute(program[index])
            except IllegalError as error:
                raise DlcError(f"vta: instruction {index} ({disassemble(program[index])}): {error}") from None

    def execute(self, instruction: Instruction) -> None:
        """One instruction; raises `IllegalError`."""
        if isinstance(instruction, Load):
            self._load(instruction)
        elif isinstance(instruction, Store):
            self._store(instruction)
        elif isinstance(instruction, Gemm):
            self._gemm(instruction)
        elif isinstance(instruction, Alu):
            self._alu(instruction)

    # --- memory ---

    def _rows(self, transfer: Transfer) -> tuple[np.ndarray, slice]:
        """The bytes in DRAM as (rows, bytes), a view, and the place in the buffer."""
        size = ELEMENT_BYTES[transfer.memory]
        name = transfer.memory.name.removesuffix("8")
        depth = self.loaded["ACC" if name == "OUT" else name].size
        end = transfer.sram_base + transfer.rows * transfer.columns
        if end > depth:
            raise IllegalError(f"writes {name}[{transfer.sram_base}:{end}], of {depth} entries")
        if transfer.memory is Memory.OUT:
            end = transfer.sram_base + transfer.y_size * transfer.x_size
        last = transfer.dram_base + (transfer.y_size - 1) * transfer.x_stride + transfer.x_size
        if last * size > self.dram.size:
            raise IllegalError(f"reaches byte {last * size} of a memory of {self.dram.size}")
        view = np.lib.stride_tricks.as_strided(
            self.dram[transfer.dram_base * size :],
            (transfer.y_size, transfer.x_size * size),
            (transfer.x_stride * size, 1),
        )
        return view, slice(transfer.sram_base, end)

    def _load(self, load: Load) -> None:
        memory = load.memory
        if memory is Memory.OUT:
            raise IllegalError("OUT cannot be loaded")
        padded = load.rows != load.y_size or load.columns != load.x_size
        if memory in (Memory.UOP, Memory.WGT) and padded:
            raise IllegalError(f"a LOAD of {memory.name} takes no padding")
        if memory is Memory.UOP and load.y_size != 1:
            raise IllegalError(f"a LOAD of UOP has one row, not {load.y_size}")
        if load.x_size == 0 or load.y_size == 0:
            return
        rows, place = self._rows(load)
        self.loaded[memory.name.removesuffix("8")][place] = True
        if memory is Memory.UOP:
            self.uop[place] = split_uops(np.ascontiguousarray(rows).view("<u4").reshape(-1), self.config)
        elif memory is Memory.WGT:
            self.wgt[place] = np.ascontiguousarray(rows).view(np.int8).reshape(-1, BLOCK, BLOCK)
        else:
            width: type[np.signedinteger] = np.int32 if memory is Memory.ACC else np.int8
            target = self.inp if memory is Memory.INP else self.acc
            image = np.zeros((load.rows, load.columns, BLOCK), target.dtype)
            inner = np.ascontiguousarray(rows).view(width).reshape(load.y_size, load.x_size, BLOCK)
            image[load.y_pad_top :, load.x_pad_left :][: load.y_size, : load.x_size] = inner
            target[place] = image.reshape(-1, BLOCK)
            if target is self.acc:
                self.from_alu[place] = False

    def _store(self, store: Store) -> None:
        if store.memory is not Memory.OUT:
            raise IllegalError(f"STORE writes OUT, not {store.memory.name}")
        if store.rows != store.y_size or store.columns != store.x_size:
            raise IllegalError("a STORE takes no padding")
        if store.x_size == 0 or store.y_size == 0:
            return
        if store.y_size > 1 and store.x_stride < store.x_size:
            raise IllegalError(f"rows of {store.x_size} elements overlap at a stride of {store.x_stride}")
        rows, place = self._rows(store)
        stale = np.flatnonzero(~self.from_alu[place])
        if stale.size:
            raise IllegalError(f"OUT[{store.sram_base + stale[0]}] was not last written by an ALU instruction")
        rows[:] = self.out[place].view(np.uint8).reshape(rows.shape)

    # --- compute ---

    def _plan(self, instruction: Loops) -> _Plan:
        begin, end = instruction.uop_begin, instruction.uop_end
        if not begin < end <= self.config.uops:
            raise IllegalError(f"micro-ops [{begin}:{end}] of a buffer of {self.config.uops}")
        if not self.loaded["UOP"][begin:end].all():
            raise IllegalError(f"micro-op {begin + int(np.argmin(self.loaded['UOP'][begin:end]))} was never loaded")
        uops = self.uop[begin:end]
        factors = tuple(
            getattr(instruction, f"{n}_factor_{k}", 0) for n in ("dst", "src", "wgt") for k in ("out", "in")
        )
        form = (type(instruction), instruction.reset, instruction.iter_out, instruction.iter_in, factors)
        operation = (instruction.alu_opcode, instruction.use_imm) if isinstance(instruction, Alu) else ()
        key = (form, operation, uops.tobytes())
        if key not in self._plans:
            self._plans[key] = self._make_plan(instruction, uops)
        return self._plans[key]

    def _make_plan(self, instruction: Loops, uops: np.ndarray) -> _Plan:
        if instruction.iter_out == 0 or instruction.iter_in == 0:
            raise IllegalError("a loop of no iterations")
        dst, src, wgt = indices(instruction, uops)
        gemm = isinstance(instruction, Gemm)
        limits = [("ACC", dst)] if not (isinstance(instruction, Alu) and instruction.alu_opcode == AluOp.SETQ) else []
        if gemm and not instruction.reset:
            limits += [("INP", src), ("WGT", wgt)]
        if isinstance(instruction, Alu) and not instruction.use_imm:
            limits.append(("ACC", src))
        for name, used in limits:
            if used.max() >= self.loaded[name].size:
                raise IllegalError(f"uses {name}[{used.max()}], of {self.loaded[name].size} entries")
        step = forwarding_hazard(dst)
        if step is not None:
            raise IllegalError(f"step {step} writes ACC[{dst[step]}], which one of the two steps before it wrote")
        if isinstance(instruction, Alu):
            return _Plan(dst, src, wgt, ordered=not instruction.use_imm and alu.reads_own_results(dst, src))
        return _Plan(
            np.unique(dst), np.unique(src), np.unique(wgt), () if instruction.reset else _groups(dst, src, wgt)
        )

    def _need(self, name: str, used: np.ndarray) -> None:
        present = self.loaded[name][used]
        if not present.all():
            raise IllegalError(f"reads {name}[{used[np.argmin(present)]}], which nothing has written")

    def _gemm(self, gemm: Gemm) -> None:
        plan = self._plan(gemm)
        self.from_alu[plan.dst] = False
        if gemm.reset:
            self.acc[plan.dst] = 0
            self.loaded["ACC"][plan.dst] = True
            return
        for name, used in (("INP", plan.src), ("WGT", plan.wgt), ("ACC", plan.dst)):
            self._need(name, used)
        for group in plan.groups:
            columns, terms = group.wgt.shape
            pieces, size, _ = group.src.shape
            for begin in range(0, terms, _EXACT):
                part = slice(begin, begin + _EXACT)
                x = self.inp[group.src[:, :, part]].reshape(1, pieces, size, -1)
                w = self.wgt[group.wgt[:, part]].transpose(0, 1, 3, 2)  # column, term, i, o
                product = x @ w.reshape(columns, 1, -1, BLOCK)
                product = product.reshape(columns, pieces * size, BLOCK)[:, : group.dst.shape[1]]
                self.acc[group.dst] += product.astype(np.int32)

    def _alu(self, instruction: Alu) -> None:
        operation = instruction.alu_opcode
        if operation >= AluOp.REQ and not self.config.requantise:
            raise IllegalError(f"vta:{self.config.name} has no ALU operation {operation.name}")
        plan = self._plan(instruction)
        if operation == AluOp.SETQ:
            if plan.src.size != 1 or instruction.use_imm:
                raise IllegalError("SETQ is one micro-op with an operand in ACC")
            base = int(plan.src[0])
            if base + alu.REGISTERS > self.config.accs:
                raise IllegalError(f"uses ACC[{base + alu.REGISTERS - 1}], of {self.config.accs} entries")
            self._need("ACC", np.arange(base, base + alu.REGISTERS))
            self.registers = alu.Registers.unpack(self.acc[base : base + alu.REGISTERS])
            return
        if operation == AluOp.REQ and self.registers is None:
            raise IllegalError("REQ before any SETQ")
        self._need("ACC", plan.dst)
        if not instruction.use_imm:
            self._need("ACC", plan.src)
        steps = range(plan.dst.size) if plan.ordered else [slice(None)]
        for step in steps:
            dst, src = np.atleast_1d(plan.dst[step]), np.atleast_1d(plan.src[step])
            second = None if instruction.use_imm else self.acc[src]
            result = alu.compute(operation, self.acc[dst], second, instruction.imm, self.registers)
            self.out[dst] = result.astype(np.int8)
            drained = operation == AluOp.REQ and instruction.imm & alu.DRAIN
            self.acc[dst] = 0 if drained else result
            if drained and second is not None:
                self.acc[src] = 0
        self.from_alu[plan.dst] = True
