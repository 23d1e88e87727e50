"""Compiles and runs CPU packages with every tensor in guarded memory: inputs, outputs, constants, the whole workspace.

Inside `guarded()` a package is built as ever, but its plan has a symbol for each value of the workspace, whose size is
the value's address: what the entry function then computes is where the value lies, and the kernels are those of an
ordinary package. Each constant is a chunk of its own. A run is two, in child processes (see `testing_memory`): one
with every tensor against the page behind it, one against the page before it and on a team of two threads. What nobody
has written differs between them; the outputs must not.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from tvm import tirx

from dlc.hardware import this_machine
from dlc.ir.interpret import evaluate_dim
from dlc.package import Package
from dlc.targets import plan
from dlc.targets.cpu import link, runtime
from dlc.targets.cpu.isa import GENERIC, levels_of
from dlc.targets.cpu.kernels.testing_memory import PLACEMENTS, Room, hold
from dlc.targets.cpu.target import CpuTarget
from dlc.targets.program import Program

_HOME = "home of "  # begins the name of a value's symbol; its bytes follow behind a colon
_MARK = "guarded"  # in the manifest of what was built so
_EVERYTHING = 1 << 40
_plan, _build = plan.plan, CpuTarget.build

#: Every instruction set that this machine has, and plain code.
LEVELS = [*(isa.name for isa in levels_of(this_machine()) if isa.dot != "amx"), GENERIC.name]


def _scattered(program: Program) -> plan.Plan:
    """The plan, with every value at an address of its own that is known only when running."""
    names = list(_plan(program).offset_of)
    homes = {name: tirx.Var(f"{_HOME}{name}:{program.buffers[name]}", "int64") for name in names}
    program.symbols += homes.values()
    return plan.Plan(homes, 0)


def _guarded_build(target: CpuTarget, module: Any, context: Any) -> Any:
    with mock.patch.object(plan, "plan", _scattered), mock.patch.object(link, "_LARGE", 0):
        built = _build(target, module, context)
    built.manifest[_MARK] = True
    return built


class GuardedExecutable(runtime.CpuExecutable):
    """Runs a package that was built inside `guarded()`; AssertionError at an access outside a tensor."""

    runs = 0  # of all executables

    def __init__(self, package: Package, threads: int = 1) -> None:
        super().__init__(package, max(2, threads))
        # A loop that ends early leaves the rest of what it stacks as it was; the host cuts it off.
        self._ends_early = any(row["op"] == "Loop" for row in self._explanation.nodes)
        self._values: dict[str, tuple[str, str]] = {}  # a symbol -> the value's name and its bytes
        for symbol in self._symbols:
            if symbol.startswith(_HOME):
                name, _, size = symbol.removeprefix(_HOME).rpartition(":")
                self._values[symbol] = (name, size)

    def _placed(self, sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
        """Sizes with homes for all values in one workspace, for what is not guarded; the bytes of it."""
        found, end = dict(sizes), 0
        for symbol, (_, size) in self._values.items():
            found[symbol] = end
            end += -(-evaluate_dim(size, sizes) // plan.ALIGNMENT) * plan.ALIGNMENT
        return found, end

    def _check(self, sizes: Mapping[str, int]) -> None:
        super()._check(self._placed(sizes)[0])

    def _evaluate(self, sizes: Mapping[str, int]) -> list[int]:
        homes, end = self._placed(sizes)
        return [end, *super()._evaluate(homes)[1:]]

    def _state(self, sizes: Mapping[str, int]) -> Any:
        return super()._state(self._placed(sizes)[0])

    def run(self, inputs: list[np.ndarray], outputs: list[np.ndarray], sizes: Mapping[str, int]) -> None:
        """See `CpuExecutable.run`."""
        GuardedExecutable.runs += 1
        first, second = (
            self._run(inputs, outputs, sizes, number, *placement) for number, placement in enumerate(PLACEMENTS)
        )
        for number, (array, one, other) in enumerate(zip(outputs, first, second, strict=True)):
            same = one == other
            if self._ends_early:
                same |= (one == PLACEMENTS[0][1]) & (other == PLACEMENTS[1][1])
            assert same.all(), f"output {number} depends on what nobody has written, or on threads"
            array[...] = one.view(array.dtype).reshape(array.shape)

    def _run(
        self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], sizes: Mapping[str, int], number: int,
        at_end: bool, fill: int,
    ) -> list[np.ndarray]:  # fmt: skip
        """The outputs as bytes; with a team where `number` is not 0."""
        rooms = _arrays(inputs, outputs, at_end, fill)
        results = [rooms[f"output {i}"] for i in range(len(outputs))]
        for i, chunk in enumerate(self._constants):
            rooms[f"constant {i}"] = Room(chunk.nbytes, at_end, fill, chunk, False)
        table = [room.address for room in rooms.values()] + [0, 0, _EVERYTHING]
        for symbol in self._symbols:
            if symbol in self._values:
                name, size = self._values[symbol]
                rooms[name] = Room(evaluate_dim(size, sizes), at_end, fill)
                table.append(rooms[name].address)
            else:
                table.append(sizes[symbol])
        self._call([*table, 0], rooms, team=number > 0)
        return [room.bytes.copy() for room in results]

    def _call(self, table: list[int], rooms: Mapping[str, Room], team: bool) -> None:
        words = np.array(table, np.uint64)

        def native() -> None:
            if team and self._team is not None:
                self._team.check()  # the child's own threads
                words[-1] = self._team.address
            self._main(ctypes.c_void_p(words.ctypes.data))

        try:
            hold(native, rooms)
        except AssertionError as error:
            raise AssertionError(f"{self._package.name}: {error}{self._where(words, rooms)}") from None

    def _where(self, words: np.ndarray, rooms: Mapping[str, Room]) -> str:
        """The first call that does it, alone and without a team."""
        words[-1] = 0
        for number, call in enumerate(self._calls):
            words[self._fixed + 1 : self._fixed + 3] = (number, number + 1)
            try:
                hold(lambda: self._main(ctypes.c_void_p(words.ctypes.data)), rooms)
            except AssertionError:
                row = self._explanation.nodes[call["row"]]
                return f"; call {number}, {row.get('kernel', call['kind'])}, node {row['node']}"
        return ""


def _arrays(inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], at_end: bool, fill: int) -> dict[str, Room]:
    """Inputs, then outputs; those that lie where an input does are the same room, the other inputs are read-only."""
    over = {array.ctypes.data for array in outputs if array.size}
    rooms, shared = {}, {}
    for i, array in enumerate(inputs):
        written = array.ctypes.data in over
        rooms[f"input {i}"] = room = Room(array.nbytes, at_end, fill, array, written)
        if written:
            shared[array.ctypes.data] = room
    for i, array in enumerate(outputs):
        rooms[f"output {i}"] = shared.get(array.ctypes.data) or Room(array.nbytes, at_end, fill)
    return rooms


def _load(package: Package, threads: int) -> runtime.CpuExecutable:
    kind = GuardedExecutable if _MARK in package.manifest["build"] else runtime.CpuExecutable
    return kind(package, threads)


@contextmanager
def guarded() -> Iterator[None]:
    """What is compiled for the CPU here is loaded into guarded memory here."""
    with mock.patch.object(CpuTarget, "build", _guarded_build), mock.patch.object(runtime, "load", _load):
        yield
