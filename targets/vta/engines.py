"""Three engines, four token queues: which engine runs an instruction, and in what order tokens let them go.

An engine runs its instructions in their order in the stream. Before one starts it takes a token from each queue that
its flags name; when it has completed it puts tokens. A token carries no data. A queue holds at most eight.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dlc.errors import DlcError
from dlc.targets.vta.isa import Instruction, Load, Memory, Store, disassemble

LOAD, COMPUTE, STORE = "load", "compute", "store"
ENGINES = (LOAD, COMPUTE, STORE)
QUEUE_DEPTH = 8
Queue = tuple[str, str]  # from, to

_POPS: dict[tuple[str, str], Queue] = {
    (LOAD, "pop_next"): (COMPUTE, LOAD),
    (COMPUTE, "pop_prev"): (LOAD, COMPUTE),
    (COMPUTE, "pop_next"): (STORE, COMPUTE),
    (STORE, "pop_prev"): (COMPUTE, STORE),
}
_PUSHES: dict[tuple[str, str], Queue] = {
    (LOAD, "push_next"): (LOAD, COMPUTE),
    (COMPUTE, "push_prev"): (COMPUTE, LOAD),
    (COMPUTE, "push_next"): (COMPUTE, STORE),
    (STORE, "push_prev"): (STORE, COMPUTE),
}
#: The flag that pops from, and the one that pushes to, each queue.
POP_FLAG = {queue: flag for (_, flag), queue in _POPS.items()}
PUSH_FLAG = {queue: flag for (_, flag), queue in _PUSHES.items()}


def engine_of(instruction: Instruction) -> str:
    """Which engine runs an instruction."""
    if isinstance(instruction, Store):
        return STORE
    return LOAD if isinstance(instruction, Load) and instruction.memory in (Memory.INP, Memory.WGT) else COMPUTE


@dataclass
class Lane:
    """One engine's instructions and how far it is.

    Attributes:
        indices: positions in the stream.
        next: how many have started.
        pushes: tokens that the last one started still owes.
    """

    indices: list[int] = field(default_factory=list)
    next: int = 0
    pushes: list[Queue] = field(default_factory=list)

    @property
    def current(self) -> int | None:
        """The instruction that owes tokens, or else the next to start."""
        if self.pushes:
            return self.indices[self.next - 1]
        return self.indices[self.next] if self.next < len(self.indices) else None


def _queues(index: int, instruction: Instruction, table: dict[tuple[str, str], Queue], verb: str) -> list[Queue]:
    engine, found = engine_of(instruction), []
    for flag in (f"{verb}_prev", f"{verb}_next"):
        if getattr(instruction, flag):
            if (engine, flag) not in table:
                where = f"instruction {index} ({disassemble(instruction)})"
                raise DlcError(f"vta: {where}: the {engine} engine has no queue for {flag}")
            found.append(table[engine, flag])
    return found


def pops(index: int, instruction: Instruction) -> list[Queue]:
    """The queues that an instruction takes a token from; DlcError for a flag that its engine does not have."""
    return _queues(index, instruction, _POPS, "pop")


def pushes(index: int, instruction: Instruction) -> list[Queue]:
    """The queues that it puts a token to; DlcError for a flag that its engine does not have."""
    return _queues(index, instruction, _PUSHES, "push")


def lanes_of(program: Sequence[Instruction]) -> dict[str, Lane]:
    """Each engine's instructions."""
    lanes = {engine: Lane() for engine in ENGINES}
    for index, instruction in enumerate(program):
        lanes[engine_of(instruction)].indices.append(index)
    return lanes


def deadlock(program: Sequence[Instruction], lanes: dict[str, Lane], tokens: Counter[Queue]) -> DlcError:
    """The error for engines that all wait: each with its instruction and what it waits for."""
    waits = []
    for engine, lane in lanes.items():
        index = lane.current
        if index is None:
            continue
        if lane.pushes:
            what = f"for room in the queue {lane.pushes[0][0]} -> {lane.pushes[0][1]}"
        else:
            empty = next(q for q in pops(index, program[index]) if not tokens[q])
            what = f"for a token of {empty[0]} -> {empty[1]}"
        waits.append(f"{engine} waits at instruction {index} ({disassemble(program[index])}) {what}")
    return DlcError(f"vta: deadlock: {'; '.join(waits)}")


def left_over(program: Sequence[Instruction], tokens: Counter[Queue]) -> DlcError | None:
    """The error for tokens that nobody took, naming the last instruction that put one; None where there are none."""
    for queue, count in tokens.items():
        if count:
            index = max(i for i, instruction in enumerate(program) if queue in pushes(i, instruction))
            text = f"{count} left in the queue {queue[0]} -> {queue[1]} at the end"
            return DlcError(f"vta: token {text}; instruction {index} ({disassemble(program[index])}) put the last one")
    return None


def run_order(program: Sequence[Instruction], preference: Sequence[str] | int = ENGINES) -> Iterator[int]:
    """Instruction indices in an order that the tokens allow.

    Args:
        program: the stream.
        preference: which engine goes first where several can, or the seed of a random choice at every step.

    Raises:
        DlcError: a deadlock, or tokens left over at the end; names instructions by index.
    """
    generator = random.Random(preference) if isinstance(preference, int) else None
    lanes, tokens = lanes_of(program), Counter[Queue]()
    while any(lane.current is not None for lane in lanes.values()):
        order = list(ENGINES if isinstance(preference, int) else preference)
        if generator is not None:
            generator.shuffle(order)
        for engine in order:
            lane = lanes[engine]
            index = lane.current
            if index is None:
                continue
            if lane.pushes:
                if tokens[lane.pushes[0]] < QUEUE_DEPTH:
                    tokens[lane.pushes.pop(0)] += 1
                    break
                continue
            needed = pops(index, program[index])
            if all(tokens[queue] for queue in needed):
                tokens.subtract(needed)
                lane.next, lane.pushes = lane.next + 1, pushes(index, program[index])
                yield index
                break
        else:
            raise deadlock(program, lanes, tokens)
    error = left_over(program, tokens)
    if error is not None:
        raise error
