"""Convolutions and matmuls: an implicit GEMM by blocks of 256 threads.

A block computes a tile of outputs. For each slice of the depth its threads fetch both operands' tiles from global
memory, neighbouring threads neighbouring addresses, into shared memory; behind a barrier every thread multiplies its
rows by its columns in registers; behind another the next slice is fetched. Padding and edges are conditions of the
fetch. The region's epilogue is computed from the accumulators, and each output is written once.
"""

from __future__ import annotations

from math import prod

from dlc.ir.graph import Graph, Node
from dlc.ir.ops.windows import CHANNELS_LAST
from dlc.ir.serial import extent_text
from dlc.targets.gpu.kernels.evaluate import Evaluator, Index, unsupported
from dlc.targets.gpu.kernels.injective import INJECTIVE
from dlc.targets.gpu.kernels.problem import Constants, ConvProblem, MatmulProblem, Problem, element
from dlc.targets.gpu.kernels.tiles import THREADS, choose, guess
from dlc.targets.gpu.source import GridAxis, Kernel, Writer, c_type, literal

NARROW = 8  # groups with fewer output channels do not fill a tile: see `windows.conv`
_PRODUCTS = {"float32", "float64", "int8", "uint8", "int16", "uint16", "int32"}


def anchor_of(body: Graph) -> Node:
    """The contraction of a region."""
    return next(n for n in body.nodes if n.op in ("dlc.conv", "dlc.matmul"))


def is_direct(body: Graph, constants: Constants) -> str | None:
    """Why a convolution is computed one output at a time (`pointwise`); None when it is a GEMM."""
    node = anchor_of(body)
    if node.op != "dlc.conv":
        return None
    if node.inputs[1] not in constants:
        return "its weight is not a constant"
    groups = node.attrs["groups"]
    if groups > 1 and int(node.output.shape[-1]) // groups < NARROW:
        return f"{int(node.output.shape[-1]) // groups} output channels a group do not fill a tile"
    return None


def declines(body: Graph) -> str | None:
    """Why the region cannot be generated here; None when it can."""
    node = anchor_of(body)
    a, b = (body.values()[n].dtype for n in node.inputs)
    if a not in _PRODUCTS or b not in _PRODUCTS or (a != b and (a.startswith("float") or b.startswith("float"))):
        return f"no kernel multiplies {a} by {b}"
    if node.op == "dlc.conv" and node.attrs["layout"] != CHANNELS_LAST:
        return "channels are not the last dimension"
    return unsupported(body, INJECTIVE, node.output.name)


class _Gemm:
    """Writes one kernel."""

    def __init__(self, body: Graph, constants: Constants) -> None:
        self.body, self.node = body, anchor_of(body)
        family = ConvProblem if self.node.op == "dlc.conv" else MatmulProblem
        self.problem: Problem = family(body, self.node, constants)
        output = body.values()[body.outputs[0]]
        self.w = Writer(output.name, output.dtype)
        self.ev = Evaluator(self.w, body, INJECTIVE)
        p = self.problem
        m, n, k, batch = (guess(d) for d in (prod(p.rows, start=1), p.n, p.k, prod(p.batch, start=1)))
        self.tile = choose(m, n, -(-k // 4) if p.words else k, batch)
        self.staged = c_type(p.staged)
        self.accumulator = "i32" if p.integer else self.staged

    def _begin(self) -> None:
        w, tile, p = self.w, self.tile, self.problem
        w.shared_array("left", p.staged, (tile.depth, tile.m + 1))  # one more: columns start in different banks
        w.shared_array("right", p.staged, (tile.depth, tile.n))
        w.line(f"const int m0 = BLOCK(0) * {tile.m}, n0 = BLOCK(1) * {tile.n};")
        self.m = w.let("int", " * ".join(self.ev.extents(p.rows)) or "1", "m")
        self.n, self.k = w.extent(p.n), w.extent(p.k)
        if p.words:
            self.k = str(-(-int(p.k) // 4))
        self.batch: Index = ()
        if p.batch:
            w.line("const int batch = BLOCK(2);")
            self.batch = self.ev.unflatten("batch", p.batch)
        p.begin(self.ev, self.batch)
        w.line(f"const int dk = THREAD % {tile.depth}, dm = THREAD / {tile.depth};")
        self.slots, self.stride = tile.m * tile.depth // THREADS or 1, THREADS // tile.depth

    def _rows(self) -> None:
        """Where the rows that this thread fetches begin."""
        w, p = self.w, self.problem
        names = p.row_arrays()
        w.line(f"int {', '.join(f'{name}[{self.slots}]' for name in names)};")
        w.line("#pragma unroll")
        with self.ev.block(f"for (int s = 0; s < {self.slots}; ++s)"):
            w.line(f"const int m = m0 + dm + s * {self.stride};")
            for name, text in zip(names, p.row(self.ev, self.ev.unflatten("m", p.rows), f"m < {self.m}"), strict=True):
                w.line(f"{name}[s] = {text};")

    def _fetch_left(self) -> None:
        w, p = self.w, self.problem
        w.line("const int k = k0 + dk;")
        shared = p.depth(self.ev, "k")
        w.line("#pragma unroll")
        with self.ev.block(f"for (int s = 0; s < {self.slots}; ++s)"):
            guard = f"if (dm + s * {self.stride} < {self.tile.m}) " if self.stride > self.tile.m else ""
            w.line(f"{guard}left[dk][dm + s * {self.stride}] = {element(p, self.ev, shared, 's')};")

    def _fetch_right(self) -> None:
        w, p, tile = self.w, self.problem, self.tile
        packed = p.packed()
        rounds = -(-tile.depth * tile.n // THREADS)
        w.line("#pragma unroll")
        with self.ev.block(f"for (int s = 0; s < {rounds}; ++s)"):
            w.line(f"const int e = THREAD + s * {THREADS}, k = k0 + e / {tile.n}, n = n0 + e % {tile.n};")
            if packed is not None:
                first = f"batch * {self.k} + " if p.batch else ""
                value = f"{self._packed}[({first}k) * {self.n} + n]"
            else:
                assert isinstance(p, MatmulProblem)
                value = f"{w.pointer(p.b.name, p.b.dtype)}[{p.first_b} + k * {self.n} + n]"
            if p.integer and not p.words:
                value = f"(i32){value} - {p.weight_zero}"
            guard = f"if (e < {tile.depth * tile.n}) " if rounds * THREADS > tile.depth * tile.n else ""
            inside = f"(k < {self.k} && n < {self.n})"
            w.line(f"{guard}right[e / {tile.n}][e % {tile.n}] = {inside} ? {value} : ({self.staged})0;")

    def _multiply(self) -> None:
        w, p, tile = self.w, self.problem, self.tile
        # Not unrolled by name: nvcc does so by itself, and it would double the time that PoCL takes to compile.
        with self.ev.block(f"for (int kk = 0; kk < {tile.depth}; ++kk)"):
            w.line(f"{self.staged} x[{tile.rows}], y[{tile.columns}];")
            w.line("#pragma unroll")
            w.line(f"for (int i = 0; i < {tile.rows}; ++i) x[i] = left[kk][own_m + i];")
            w.line("#pragma unroll")
            w.line(f"for (int j = 0; j < {tile.columns}; ++j) y[j] = right[kk][own_n + j * {tile.lanes}];")
            w.line("#pragma unroll")
            with self.ev.block(f"for (int i = 0; i < {tile.rows}; ++i)"):
                w.line("#pragma unroll")
                term = "fma(x[i], y[j], acc[i][j])"
                if p.integer:
                    term = "dot4(x[i], y[j], acc[i][j])" if p.words else "(i32)((u32)acc[i][j] + (u32)x[i] * (u32)y[j])"
                w.line(f"for (int j = 0; j < {tile.columns}; ++j) acc[i][j] = {term};")

    def _store(self) -> None:
        w, ev, p, tile = self.w, self.ev, self.problem, self.tile
        correction = p.correction()
        corrected = None if correction is None else w.constant(correction)
        shape, kind = self.node.output.shape, c_type(self.node.output.dtype)
        w.line("#pragma unroll")
        with ev.block(f"for (int i = 0; i < {tile.rows}; ++i)"):
            w.line("const int m = m0 + own_m + i;")
            w.line(f"if (m >= {self.m}) continue;")
            row = ev.unflatten("m", p.rows)
            w.line("#pragma unroll")
            with ev.block(f"for (int j = 0; j < {tile.columns}; ++j)"):
                w.line(f"const int n = n0 + own_n + j * {tile.lanes};")
                w.line(f"if (n >= {self.n}) continue;")
                index = ev.broadcast(shape, p.output_index(self.batch, row, "n"))
                index = tuple(w.let("int", component, "i") for component in index)
                value = "acc[i][j]"
                if corrected is not None:
                    value = f"(i32)((u32)acc[i][j] + (u32){corrected}[{index[-1]}])"
                ev.bind(self.node.output.name, index, w.let(kind, f"({kind}){value}"))
                result = ev.at(self.body.outputs[0], index)
                w.line(f"out[{ev.flat(index, shape)}] = {result};")

    def emit(self) -> Kernel:
        """The kernel."""
        w, tile, p = self.w, self.tile, self.problem
        packed = p.packed()
        self._packed = "" if packed is None else w.constant(packed)
        self._begin()
        self._rows()
        w.line(f"const int own_m = THREAD / {tile.lanes} * {tile.rows}, own_n = THREAD % {tile.lanes};")
        w.line(f"{self.accumulator} acc[{tile.rows}][{tile.columns}];")
        zero = literal(0, "int32" if p.integer else p.staged)
        w.line("#pragma unroll")
        w.line(f"for (int i = 0; i < {tile.rows * tile.columns}; ++i) "
               f"acc[i / {tile.columns}][i % {tile.columns}] = {zero};")  # fmt: skip
        with self.ev.block(f"for (int k0 = 0; k0 < {self.k}; k0 += {tile.depth})"):
            with self.ev.block(""):
                self._fetch_left()
            self._fetch_right()
            w.line("BARRIER();")
            self._multiply()
            w.line("BARRIER();")
        self._store()
        rows = GridAxis(tuple(extent_text(d) for d in p.rows), tile.m)
        columns = GridAxis((extent_text(p.n),), tile.n)
        batch = GridAxis(tuple(extent_text(d) for d in p.batch))
        kind = ("implicit GEMM" if self.node.op == "dlc.conv" else "GEMM") + (", dp4a" if p.words else "")
        return w.finish([rows, columns, batch], THREADS, kind=kind, tile=str(tile))


def emit(body: Graph, constants: Constants) -> Kernel:
    """The kernel of a region with a contraction."""
    return _Gemm(body, constants).emit()
