"""Runs CPU packages: loads the object file with a JIT linker and calls it. Imports neither TVM's compiler nor onnx."""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from typing import Any

import numpy as np

from dlc import explain
from dlc.errors import DlcError
from dlc.package import Package
from dlc.runtime.ffi import import_tvm_ffi
from dlc.runtime.pointers import addresses
from dlc.targets.cpu.members import Team
from dlc.targets.cpu.pages import gathered

_ALIGNMENT = 64
_EVERYTHING = 1 << 40
_REMEMBERED = 256  # combinations of sizes
_ROUNDS = 10  # in which all kernels are measured
_MOST_RUNS = 1000


def _aligned_bytes(size: int) -> np.ndarray:
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    shift = -raw.ctypes.data % _ALIGNMENT
    return raw[shift : shift + size]


class _State:
    """What one call in flight needs for itself: the argument table and the workspace.

    `sizes` are the symbols' sizes that both are made for, `key` their numbers; None at first.
    """

    __slots__ = ("argument", "key", "size", "sizes", "table", "words", "workspace")

    def __init__(self, words: int) -> None:
        self.table = np.zeros(words, np.uint64)
        self.words = memoryview(self.table)  # type: ignore[arg-type]  # a buffer for stubs of Python 3.12 on
        self.argument = ctypes.c_void_p(self.table.ctypes.data)
        self.workspace = _aligned_bytes(0)
        self.size = -1
        self.sizes: Mapping[str, int] | None = None
        self.key: list[int] | None = None


class CpuExecutable:
    """A loaded model. Safe to call from several threads: each call in flight has its own workspace.

    With more than one thread, a team of them computes the kernels that are long enough; see `members`.
    """

    def __init__(self, package: Package, threads: int = 1) -> None:
        import_tvm_ffi()
        import tvm_ffi_orcjit

        build = package.manifest["build"]
        self._package = package  # the constants may be mapped from it
        # The named compiler is asked for its C++ runtime, which this code does not use; an absent one is not run.
        self._module = tvm_ffi_orcjit.ExecutionSession(None).load_module(
            [bytes(package.member(name)) for name in build["objects"]], cxx="/nonexistent"
        )
        self._main, self._sizes = self._module["dlc_main"], self._module["dlc_sizes"]
        self._constants = gathered([package.constants(name)["constants"] for name in build["constants"]])
        self._symbols: list[str] = build["symbols"]
        self._static: list[int] | None = build["sizes"]
        self._calls: list[dict[str, Any]] = build["calls"]
        # Extents without a minus are never negative: only the others are looked at when sizes change.
        self._decreasing = [call for call in self._calls if any("-" in str(d) for d in call["shape"])]
        self._explanation = explain.read(package)
        self._inputs = len(package.manifest["inputs"])
        self._output_ranks = [len(o["shape"]) for o in package.manifest["outputs"]]
        self._arrays = self._inputs + len(self._output_ranks)
        self._place = struct.Struct(f"{self._arrays}Q").pack_into
        self._fixed = self._arrays + len(self._constants)
        self._free: list[_State] = []
        self._team = Team(self._module, threads) if threads > 1 and build["shared"] else None
        self._known: set[tuple[int, ...]] = set()  # sizes of the symbols that were checked

    def clone(self) -> CpuExecutable:
        """The executable itself: calls share nothing that they write."""
        return self

    # --- sizes ---

    def _evaluate(self, sizes: Mapping[str, int]) -> list[int]:
        """What ``dlc_sizes`` computes, see `link.py`."""
        if self._static is not None:
            return self._static
        count = 1 + sum(self._output_ranks) + len(self._calls)
        table = np.zeros(len(self._symbols) + count, np.int64)
        table[: len(self._symbols)] = [sizes[name] for name in self._symbols]
        self._sizes(ctypes.c_void_p(table.ctypes.data))
        result: list[int] = table[len(self._symbols) :].tolist()
        return result

    def output_shapes(self, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
        """The outputs' extents; DlcError where some value inside would have a negative extent."""
        self._check(sizes)
        values, position, shapes = self._evaluate(sizes), 1, []
        for rank in self._output_ranks:
            shapes.append(tuple(values[position : position + rank]))
            position += rank
        return shapes

    def _check(self, sizes: Mapping[str, int]) -> None:
        """Hold every value to extents of at least 0: kernels compute addresses from them."""
        key = tuple(sizes[name] for name in self._symbols)
        if self._static is not None or key in self._known:
            return
        from dlc.ir.interpret import evaluate_dim  # only models with symbolic extents need the table of operators

        for call in self._decreasing:
            row = self._explanation.nodes[call["row"]]
            shape = [evaluate_dim(d, sizes) for d in call["shape"]]
            if min(shape, default=0) < 0:
                given = ", ".join(f"{name} = {sizes[name]}" for name in self._symbols)
                raise DlcError(f"node {row['node']}: its output would have the extents {shape} for {given}")
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known.add(key)

    # --- running ---

    def _state(self, sizes: Mapping[str, int]) -> _State:
        try:
            state = self._free.pop()  # atomic under the GIL
        except IndexError:
            state = self._new_state()
        if state.sizes is not sizes:  # a session has one mapping for each combination of shapes
            self._prepare(state, sizes)
        return state

    def _new_state(self) -> _State:
        state = _State(self._fixed + 4 + len(self._symbols))
        state.table[self._arrays : self._fixed] = [chunk.ctypes.data for chunk in self._constants]
        state.table[self._fixed + 1 : self._fixed + 3] = (0, _EVERYTHING)
        return state

    def _prepare(self, state: _State, sizes: Mapping[str, int]) -> None:
        """Make a state fit for other sizes."""
        key = [sizes[name] for name in self._symbols]
        if state.key != key:
            need = self._evaluate(sizes)[0]
            if need > state.size:
                try:
                    state.workspace, state.size = _aligned_bytes(need), need
                except (MemoryError, ValueError) as error:  # ValueError: more bytes than there are addresses
                    raise DlcError(f"{self._package.name}: no memory for a workspace of {need} bytes") from error
                state.table[self._fixed] = state.workspace.ctypes.data
            state.table[self._fixed + 3 : -1] = key
        state.key, state.sizes = key, sizes

    def run(self, inputs: list[np.ndarray], outputs: list[np.ndarray], sizes: Mapping[str, int]) -> None:
        """Compute all outputs; see `dlc.targets.base.Executable`."""
        state = self._state(sizes)
        self._place(state.words, 0, *addresses(inputs), *addresses(outputs))
        if self._team is None:
            self._main(state.argument)
        else:
            self._run_shared(self._team, state)
        self._free.append(state)

    def _run_shared(self, team: Team, state: _State) -> None:
        """Run with the team; a call that finds it busy runs on its own thread."""
        if not team.free.acquire(blocking=False):
            self._main(state.argument)
            return
        try:
            team.check()
            state.table[-1] = team.address
            self._main(state.argument)
        finally:
            state.table[-1] = 0
            team.free.release()

    def bound(
        self, inputs: list[np.ndarray], outputs: list[np.ndarray], sizes: Mapping[str, int]
    ) -> Callable[[], object]:
        """`run` on these arrays, which must outlive it, with a workspace of its own."""
        state = self._new_state()
        self._prepare(state, sizes)
        self._place(state.words, 0, *addresses(inputs), *addresses(outputs))
        if self._team is not None:
            return partial(self._run_shared, self._team, state)
        return lambda: self._main(state.argument)

    def native_call(
        self, inputs: list[np.ndarray], outputs: list[np.ndarray], sizes: Mapping[str, int]
    ) -> tuple[Any, Any]:
        """The native entry and its argument for these arrays, which must outlive it: for measuring."""
        state = self._state(sizes)
        self._place(state.words, 0, *addresses(inputs), *addresses(outputs))
        state.table[-1] = self._team.address if self._team is not None else 0
        self._reserved = state
        return self._main, state.argument

    def measure(self, inputs: list[np.ndarray], sizes: Mapping[str, int], seconds: float) -> list[tuple[int, float]]:
        """Each kernel again and again by itself: (its row of the explanation, microseconds a run).

        It runs on what its predecessors left, its operands in caches as its own runs leave them. All kernels take
        turns in rounds, and the least of a kernel's means counts: noise only ever adds, and may last for seconds. What
        a call of no kernel takes is taken off. A loop or a branch counts as one kernel.

        Args:
            seconds: the time for each kernel, or `_MOST_RUNS` runs of it where they take less.
        """
        outputs = self._outputs(sizes)
        main, argument = self.native_call(inputs, outputs, sizes)
        state = self._reserved
        limits = state.table[self._fixed + 1 : self._fixed + 3]
        ranges = [(0, 0), *((number, number + 1) for number in range(len(self._calls)))]
        best = [float("inf")] * len(ranges)
        try:
            for _ in range(_ROUNDS):
                for number, kernels in enumerate(ranges):
                    limits[:] = kernels
                    best[number] = min(best[number], _mean(lambda: main(argument), seconds / _ROUNDS))
        finally:
            limits[:] = (0, _EVERYTHING)
            state.table[-1] = 0
            self._free.append(state)
        rows = [*(call["row"] for call in self._calls), len(self._explanation.nodes)]
        # A copy that is no operator of the model has no row.
        owned = [(row, each) for row, after, each in zip(rows[:-1], rows[1:], best[1:], strict=True) if row < after]
        return [(row, (each - best[0]) * 1e6) for row, each in owned]

    def trace(self, inputs: list[np.ndarray], sizes: Mapping[str, int]) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """Run kernel by kernel; yields (explanation row, the kernel's value as the model has it, dequantised)."""
        outputs = self._outputs(sizes)
        state = self._state(sizes)
        values = self._evaluate(sizes)
        offsets = values[len(values) - len(self._calls) :]
        self._place(state.words, 0, *addresses(inputs), *addresses(outputs))
        try:
            for number, call in enumerate(self._calls):
                state.table[self._fixed + 1 : self._fixed + 3] = (number, number + 1)
                self._main(state.argument)
                if call["kind"] == "control flow":
                    continue
                row = self._explanation.nodes[call["row"]]
                given = {"input": inputs, "output": outputs}.get(call["kind"])
                place = state.workspace[offsets[number] :] if given is None else given[call["index"]]
                array = _logical(place, call, sizes, bool(row["channels_last"]))
                yield row, self._explanation.real(row["value"], array)
        finally:
            state.table[self._fixed + 1 : self._fixed + 3] = (0, _EVERYTHING)
            self._free.append(state)

    def _outputs(self, sizes: Mapping[str, int]) -> list[np.ndarray]:
        dtypes = [np.dtype(o["dtype"]) for o in self._package.manifest["outputs"]]
        return [np.empty(s, d) for s, d in zip(self.output_shapes(sizes), dtypes, strict=True)]


def _mean(run: Callable[[], object], seconds: float) -> float:
    """Seconds of one run, from as many as fit in `seconds`."""
    run()
    started = time.perf_counter()
    run()
    once = time.perf_counter() - started
    count = max(1, min(_MOST_RUNS // _ROUNDS, int(seconds / max(once, 1e-7))))
    started = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - started) / count


def _logical(place: np.ndarray, call: dict[str, Any], sizes: Mapping[str, int], channels_last: bool) -> np.ndarray:
    """A kernel's output without its halo, channels first as in the model."""
    from dlc.ir.interpret import evaluate_dim

    shape = [evaluate_dim(d, sizes) for d in call["shape"]]
    full = [d + before + after for d, (before, after) in zip(shape, call["halo"], strict=True)]
    dtype = np.dtype(call["dtype"])
    flat = place.reshape(-1).view(np.uint8)[: prod(full) * dtype.itemsize].view(dtype).reshape(full)
    inner = flat[tuple(slice(b, b + d) for d, (b, _) in zip(shape, call["halo"], strict=True))].copy()
    return np.moveaxis(inner, -1, 1) if channels_last else inner


def load(package: Package, threads: int) -> CpuExecutable:
    """Load a package for this machine; see `CpuExecutable`."""
    return CpuExecutable(package, threads)
