"""The cycle model: three engines, the memory's read and write channel, the tokens between them (docs/vta.md, "Time").

Every engine has a clock. The engine whose clock is least acts next: it takes tokens, moves bursts or computes, puts
tokens. So bursts of the load and the compute engine alternate at the read channel in the order of their requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np

from dlc.targets.vta.engines import COMPUTE, ENGINES, QUEUE_DEPTH, Counter, Queue, deadlock, lanes_of, left_over
from dlc.targets.vta.engines import pops as pops_of
from dlc.targets.vta.engines import pushes as pushes_of
from dlc.targets.vta.isa import ELEMENT_BYTES, Alu, AluOp, Gemm, Instruction, Memory, Store, Transfer

BYTES_A_CYCLE = 8
BURST = 2048  #: bytes
LATENCY = 16  #: of a read that finds its channel idle, and of a store's acknowledgement
ISSUE = 8  #: filling and draining the pipeline of GEMM and ALU
STORE_CYCLES = 3  #: an element
SETQ_CYCLES = 5  #: it reads five entries


@dataclass
class Timing:
    """What a program takes.

    Attributes:
        cycles: until the last instruction has completed.
        busy: cycles in which each engine worked rather than waited for tokens.
        gemm, alu: of compute's, those of each kind.
        read: cycles in which the read channel moved data.
        finished: when each instruction completed.
    """

    cycles: int
    busy: dict[str, int]
    gemm: int
    alu: int
    read: int
    finished: np.ndarray


def compute_cycles(instruction: Instruction) -> int:
    """Cycles of a GEMM or ALU instruction; 1 for what does nothing."""
    if isinstance(instruction, Gemm):
        return instruction.steps + ISSUE
    if isinstance(instruction, Alu):
        if instruction.alu_opcode == AluOp.SETQ:
            return SETQ_CYCLES * instruction.steps + ISSUE
        return (1 if instruction.use_imm else 2) * instruction.steps + ISSUE
    return 1


def bursts(transfer: Transfer) -> tuple[int, int]:
    """(number of bursts, elements of each, rounded up) of a transfer that moves anything."""
    rows, columns = transfer.y_size, transfer.x_size
    if rows == 1 or transfer.x_stride == columns:
        rows, columns = 1, rows * columns
    most = BURST // ELEMENT_BYTES[transfer.memory]
    pieces = ceil(columns / most)
    return rows * pieces, ceil(columns / pieces)


@dataclass
class _Engine:
    clock: int = 0
    busy: int = 0
    blocked: bool = False
    pops: list[Queue] | None = None  # None: the next instruction has not been looked at
    bursts: int = 0
    first: bool = False


@dataclass
class _Machine:
    program: Sequence[Instruction]
    tokens: dict[Queue, list[int]] = field(default_factory=dict)
    room: dict[Queue, int] = field(default_factory=dict)  # when a full queue last became free
    read_free: int = 0
    read: int = 0

    def __post_init__(self) -> None:
        self.lanes = lanes_of(self.program)
        self.engines = {name: _Engine() for name in ENGINES}
        self.finished = np.zeros(len(self.program), np.int64)
        self.kinds = {"gemm": 0, "alu": 0}

    def act(self, name: str) -> None:
        """One step of an engine: sets `blocked` where it has to wait for another."""
        engine, lane = self.engines[name], self.lanes[name]
        if lane.pushes:
            self.push(engine, lane.pushes)
            return
        index = lane.current
        assert index is not None
        instruction = self.program[index]
        if engine.pops is None:
            engine.pops = pops_of(index, instruction)
            moves = isinstance(instruction, Transfer) and instruction.x_size * instruction.y_size > 0
            engine.bursts, engine.first = bursts(instruction)[0] if moves else 0, True  # type: ignore[arg-type]
        if engine.pops:
            self.pop(engine)
            return
        if engine.bursts:
            assert isinstance(instruction, Transfer)
            self.move(name, engine, instruction)
            if engine.bursts:
                return
        else:
            cycles = compute_cycles(instruction)
            engine.clock += cycles
            engine.busy += cycles
            if isinstance(instruction, Gemm | Alu):
                self.kinds["gemm" if isinstance(instruction, Gemm) else "alu"] += cycles
        self.finished[index] = engine.clock
        lane.next, lane.pushes, engine.pops = lane.next + 1, pushes_of(index, instruction), None

    def pop(self, engine: _Engine) -> None:
        assert engine.pops
        waiting = self.tokens.setdefault(engine.pops[0], [])
        if not waiting:
            engine.blocked = True
            return
        if len(waiting) == QUEUE_DEPTH:
            self.room[engine.pops[0]] = max(engine.clock, waiting[0])
        engine.clock = max(engine.clock, waiting.pop(0))
        engine.pops.pop(0)
        self.wake()

    def push(self, engine: _Engine, owed: list[Queue]) -> None:
        queue = self.tokens.setdefault(owed[0], [])
        if len(queue) == QUEUE_DEPTH:
            engine.blocked = True
            return
        engine.clock = max(engine.clock, self.room.pop(owed[0], 0))
        queue.append(engine.clock)
        owed.pop(0)
        self.wake()

    def wake(self) -> None:
        for engine in self.engines.values():
            engine.blocked = False

    def move(self, name: str, engine: _Engine, transfer: Transfer) -> None:
        """As many bursts as come before another engine's clock, at least one."""
        elements, began = bursts(transfer)[1], engine.clock
        if isinstance(transfer, Store):
            # The only user of the write channel.
            engine.clock += engine.bursts * (STORE_CYCLES * elements + LATENCY)
            engine.bursts = 0
        else:
            length = ceil(elements * ELEMENT_BYTES[transfer.memory] / BYTES_A_CYCLE)
            start = max(engine.clock, self.read_free)
            if engine.first and start == engine.clock:
                start += LATENCY
            engine.first = False
            others = [self.engines[n].clock for n in ENGINES if n != name and self.is_active(n)]
            count = max(1, min(engine.bursts, (min(others) - start) // length if others else engine.bursts))
            self.read_free = engine.clock = start + count * length
            self.read += count * length
            engine.bursts -= count
        if not engine.bursts:
            engine.clock += transfer.rows * transfer.columns - transfer.y_size * transfer.x_size  # the zeros
        engine.busy += engine.clock - began

    def is_active(self, name: str) -> bool:
        """Whether an engine could act before it is woken."""
        return not self.engines[name].blocked and self.lanes[name].current is not None


def simulate(program: Sequence[Instruction]) -> Timing:
    """The time of a program.

    Raises:
        DlcError: a deadlock, or tokens left over at the end; names instructions by index.
    """
    machine = _Machine(program)
    while True:
        going = [n for n in ENGINES if machine.lanes[n].current is not None]
        ready = [n for n in going if not machine.engines[n].blocked]
        if not going:
            break
        if not ready:
            raise deadlock(program, machine.lanes, Counter({q: len(t) for q, t in machine.tokens.items()}))
        machine.act(min(ready, key=lambda n: machine.engines[n].clock))
    error = left_over(program, Counter({q: len(t) for q, t in machine.tokens.items()}))
    if error is not None:
        raise error
    busy = {name: engine.busy for name, engine in machine.engines.items()}
    cycles = max(engine.clock for engine in machine.engines.values())
    return Timing(cycles, busy, **machine.kinds, read=machine.read, finished=machine.finished)


__all__ = ["COMPUTE", "Memory", "Timing", "bursts", "compute_cycles", "simulate"]
