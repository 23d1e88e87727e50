"""From a lowered program to object files: the entry functions, the compilation, the constants.

Two entries, both called through tvm-ffi with one pointer to a table of 64-bit words:

- ``dlc_main``: pointers of the inputs, of the outputs, of the chunks of constants (see `Constants`), base of the
  workspace, the first call to run, the one to stop before, the symbols' sizes, the thread team or 0. Running a range
  of calls is what tracing and profiling use.
- ``dlc_sizes``: (in) the symbols' sizes, (out) bytes of workspace, the outputs' extents, the offset of every call's
  output in the workspace (or -1).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from dlc.hardware import this_machine
from dlc.ir.dims import substitute
from dlc.targets.cpu.codegen import compile_functions
from dlc.targets.cpu.isa import Isa
from dlc.targets.cpu.kernels.builder import C_ABI, stack
from dlc.targets.cpu.team import BARRIER, BODY, RUN, team_functions
from dlc.targets.plan import ALIGNMENT, Plan
from dlc.targets.program import Branch, Call, Copy, Item, Loop, Program, Ref, Step, inside

MAIN, SIZES = "dlc_main", "dlc_sizes"
_KERNELS = 8  # in one object file, about: a file more costs a millisecond when loading
_MOST_OBJECTS = 4
_FOREVER = (1 << 63) - 1
_LARGE = 4096  # bytes of a constant that is a member of its own


class Constants:
    """A program's constants as chunks, which are members of the package: small constants share the first chunk.

    A large one is a chunk of its own, so that packages in one package store it once where it is the same: a package
    stores equal members once.

    Attributes:
        places: of each constant: its chunk, and its offset there in bytes, a multiple of 64.
        chunks: uint8.
    """

    def __init__(self, constants: Sequence[np.ndarray]) -> None:
        self.places: list[tuple[int, int]] = []
        small: list[np.ndarray] = []
        large: list[np.ndarray] = []
        end = 0
        for array in constants:
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            if flat.size >= _LARGE:
                large.append(flat)
                self.places.append((len(large), 0))
                continue
            self.places.append((0, end))
            small += [flat, np.zeros(-flat.size % ALIGNMENT, np.uint8)]
            end += -(-flat.size // ALIGNMENT) * ALIGNMENT
        self.chunks = [np.concatenate([np.empty(0, np.uint8), *small]), *large]


def size_expressions(program: Program, plan: Plan) -> list[Any]:
    """What ``dlc_sizes`` writes, in order."""
    found = [plan.total]
    found += [d for value in program.outputs for d in value.shape]
    found += [plan.offset_of.get(call.output.name, -1) if isinstance(call, Call) else -1 for call in program.calls]
    return found


class _Entry:
    """Emits the program: ``dlc_main``, and with threads `BODY`, which every member of the team runs (see `team`).

    There, shared kernels compute a part each; all else is done by member 0. A barrier stands before a shared kernel
    that follows something of member 0's alone, and behind every shared kernel.
    """

    def __init__(self, program: Program, plan: Plan, constants: Constants) -> None:
        self.program, self.plan, self.constants = program, plan, constants
        self.first_chunk = len(program.inputs) + len(program.outputs)
        self.fixed = self.first_chunk + len(constants.chunks)
        self.iterations: dict[str, Any] = {}  # of the loops that are open
        self.parity: Any = T.int64(0)  # of the innermost one
        self.team: Any = None
        self.behind = False  # whether member 0 has done something that the others have not waited for

    def emit(self) -> dict[str, Any]:
        """The functions, by name."""
        if not is_shared(self.program):
            return {MAIN: self._function(MAIN, None)}
        return {MAIN: self._main(), BODY: self._function(BODY, {"calling_conv": C_ABI})}

    @property
    def words_count(self) -> int:
        """Words of the table."""
        return self.fixed + 4 + len(self.program.symbols)

    def _main(self) -> Any:
        """Give the work to the team, or do it alone."""
        with IRBuilder() as builder:
            with T.prim_func():
                T.func_name(MAIN)
                T.func_attr({"global_symbol": MAIN, "tirx.noalias": True})
                pointer = T.arg("args", T.handle("uint64"))
                table = T.decl_buffer((self.words_count,), "uint64", data=pointer)
                team = T.bind(table[self.words_count - 1])
                handle = T.reinterpret("handle", team)
                with T.If(team == T.uint64(0)):
                    with T.Then():
                        T.evaluate(T.call_extern("void", BODY, pointer, T.int64(0), T.int64(1), handle))
                    with T.Else():
                        T.evaluate(T.call_extern("void", RUN, handle, pointer))
            return builder.get()

    def _function(self, name: str, attrs: dict[str, Any] | None) -> Any:
        program = self.program
        with IRBuilder() as builder:
            with T.prim_func():
                T.func_name(name)
                T.func_attr({"global_symbol": name, "tirx.noalias": True, **(attrs or {})})
                pointer = T.arg("args", T.handle("uint64"))
                if attrs is not None:
                    self.member, self.members = (T.arg(n, tirx.Var(n, "int64")) for n in ("member", "members"))
                    self.team = T.arg("team", T.handle("int64"))
                table = T.decl_buffer((self.words_count,), "uint64", data=pointer)
                self.table = table
                self.words = [T.bind(table[i]) for i in range(self.first_chunk)]
                self.workspace = T.bind(table[self.fixed])
                begin = T.bind(T.cast(table[self.fixed + 1], "int64"))
                end = T.bind(T.cast(table[self.fixed + 2], "int64"))
                sizes = [T.bind(T.cast(table[i], "int64")) for i in range(self.fixed + 3, self.words_count - 1)]
                self.sizes = {str(v.name): s for v, s in zip(program.symbols, sizes, strict=True)}
                for number, call in enumerate(program.calls):
                    wanted = T.And(begin <= T.int64(number), T.int64(number) < end)
                    with T.If(wanted), T.Then():
                        self._call(call)
            return builder.get()

    # --- who does what ---

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """What member 0 does."""
        if self.team is None:
            yield
            return
        self.behind = True
        with T.If(self.member == T.int64(0)), T.Then():
            yield

    def _meet(self) -> None:
        """A barrier."""
        self.behind = False
        if self.team is not None:
            with T.If(self.members > T.int64(1)), T.Then():
                T.evaluate(T.call_extern("void", BARRIER, self.team))

    def _catch_up(self) -> None:
        """A barrier, where member 0 is ahead."""
        if self.behind:
            self._meet()

    # --- calls ---

    def _call(self, call: Item) -> None:
        if not _is_shared(call) and self.team is not None:
            team = self.team
            with self._alone():
                self.team = None
                self._call(call)
            self.team, self.behind = team, True
        elif isinstance(call, Loop):
            self._loop(call)
        elif isinstance(call, Copy):
            self._copy([call])
        elif isinstance(call, Branch):
            self._branch(call)
        else:
            self._kernel(call)

    def _kernel(self, call: Call) -> None:
        arguments = [self._pointer(ref) for ref in (*call.inputs, call.output)]
        arguments += [self.sizes[str(d.name)] for d in call.dims]
        arguments += [self.parity] if call.turns else []
        if call.shared:
            self._catch_up()
            arguments += [self.member, self.members]
        T.evaluate(T.call_extern("void", call.symbol, *arguments))
        if call.shared:
            self._meet()

    def _branch(self, branch: Branch) -> None:
        self._catch_up()
        chosen = T.bind(self._scalar(branch.condition, "uint8")[0])
        if self.team is not None:
            self._meet()  # before anybody writes where the condition lies
        with T.If(chosen != T.uint8(0)):
            for context, arm in zip((T.Then, T.Else), branch.arms, strict=True):
                with context():
                    T.evaluate(T.int32(0))  # an arm may be empty
                    for call in arm:
                        self._call(call)
                    self._catch_up()

    def _loop(self, loop: Loop) -> None:
        with self._alone():
            self._copy(loop.before)
        self._catch_up()
        most = T.int64(_FOREVER) if loop.rows is None else self._size(loop.rows)
        if loop.trips is not None:
            most = T.bind(T.min(most, self._scalar(loop.trips, "int64")[0]))
        if loop.going is None:
            with T.serial(T.int64(0), most) as iteration:
                self._iteration(loop, iteration)
            return
        going, counter = self._scalar(loop.going, "uint8"), stack("int64", 1)
        T.buffer_store(counter, T.int64(0), [0])
        with T.While(T.And(counter[0] < most, going[0] != T.uint8(0))):
            if self.team is not None:
                self._meet()  # before anybody writes where the condition lies
            iteration = T.bind(counter[0])
            self._iteration(loop, iteration)
            T.buffer_store(counter, iteration + T.int64(1), [0])

    def _iteration(self, loop: Loop, iteration: Any) -> None:
        self.iterations[loop.variable] = iteration
        outer, self.parity = self.parity, T.bitwise_and(iteration, T.int64(1))
        if loop.counter is not None:
            with self._alone():
                T.buffer_store(self._scalar(loop.counter, "int64"), iteration, [0])
        for call in loop.calls:
            self._call(call)
        if loop.after:
            with self._alone():
                self._copy(loop.after)
        self._catch_up()
        self.parity = outer

    def _copy(self, copies: Sequence[Copy]) -> None:
        for copy in copies:
            source, target, size = self._pointer(copy.source), self._pointer(copy.target), self._size(copy.size)
            T.evaluate(T.call_extern("void", "memcpy", target, source, size))

    def _scalar(self, ref: Ref, dtype: str) -> Any:
        """The number at a place."""
        return T.decl_buffer((1,), dtype, data=T.bind(T.reinterpret("handle", self._address(ref))))

    def _size(self, size: Any) -> Any:
        size = substitute(size, self.sizes)
        return T.int64(size) if isinstance(size, int) else size

    def _pointer(self, ref: Ref) -> Any:
        return T.reinterpret("handle", self._address(ref))

    def _address(self, ref: Ref) -> Any:
        if ref.kind == "input":
            address = self.words[ref.index]
        elif ref.kind == "output":
            address = self.words[len(self.program.inputs) + ref.index]
        elif ref.kind == "constant":
            chunk, offset = self.constants.places[ref.index]
            # Read where it is used: there may be hundreds, too many to hold over the calls.
            address = self.table[self.first_chunk + chunk] + T.uint64(offset)
        else:
            address = self.workspace + T.cast(self._size(self.plan.offset_of[ref.name]), "uint64")
        for step in ref.steps:
            address = address + T.cast(self._number(step) * self._size(step.size), "uint64")
        return address

    def _number(self, step: Step) -> Any:
        """The slice at which a place lies in an iteration."""
        number = self.iterations[step.variable]
        if step.offset:
            number = number + T.int64(step.offset)
        return number if step.period is None else T.truncmod(number, T.int64(step.period))


def _is_shared(call: Item) -> bool:
    """Whether a call, or one inside it, is computed in parts."""
    return (isinstance(call, Call) and call.shared) or any(map(_is_shared, inside(call)))


def is_shared(program: Program) -> bool:
    """Whether threads have something to share out."""
    return any(map(_is_shared, program.calls))


def _sizes_entry(program: Program, plan: Plan) -> Any:
    expressions = size_expressions(program, plan)
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_name(SIZES)
            T.func_attr({"global_symbol": SIZES, "tirx.noalias": True})
            count = len(program.symbols)
            table = T.decl_buffer((count + len(expressions),), "int64", data=T.arg("args", T.handle("int64")))
            sizes = {str(v.name): T.bind(table[i]) for i, v in enumerate(program.symbols)}
            for i, expression in enumerate(expressions):
                value = substitute(expression, sizes)
                T.buffer_store(table, T.int64(value) if isinstance(value, int) else value, [count + i])
        return builder.get()


def compile_program(program: Program, plan: Plan, constants: Constants, isa: Isa) -> dict[str, bytes]:
    """Compile to object files, by member name.

    The entries and the kernels are objects of their own, so that LLVM never inlines a kernel into its caller: every
    buffer of a kernel carries alias metadata of its own, and behind inlining loads would move across the stores of
    another kernel to the same memory (see docs/tvm.md).

    The kernels are shared out over several objects, and LLVM works on as many at once as there are cores. How many
    there are depends on the program alone, so that the same program gives the same bytes on any machine.
    """
    entry = {**_Entry(program, plan, constants).emit(), SIZES: _sizes_entry(program, plan)}
    if is_shared(program):
        entry |= team_functions(isa)
    objects = {"entry.o": entry}
    count = min(_MOST_OBJECTS, -(-len(program.kernels) // _KERNELS))
    kernels = list(program.kernels.items())
    objects |= {f"kernels{number}.o": dict(kernels[number::count]) for number in range(count)}
    with ThreadPoolExecutor(min(len(objects), this_machine().cores)) as pool:
        compiled = pool.map(lambda functions: _object(functions, isa), objects.values())
        return dict(zip(objects, compiled, strict=True))


def _object(functions: Mapping[str, Any], isa: Isa) -> bytes:
    library = compile_functions(tvm.IRModule(dict(functions)), isa)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "code.o"
        library.write_to_file(str(path))
        return path.read_bytes()
