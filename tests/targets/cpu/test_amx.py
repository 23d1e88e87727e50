"""The tile instructions: their emulation against the manual's description in numpy, and for real where they exist."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from tvm.script.ir_builder import tirx as T

from dlc.hardware import this_machine
from dlc.targets.cpu.isa import AMX_EMULATED, Isa, isa_by_name, levels_of
from dlc.targets.cpu.kernels import amx
from dlc.targets.cpu.kernels.builder import kernel
from dlc.targets.cpu.kernels.testing import Compiled
from dlc.targets.layout import Layout

REAL = isa_by_name("amx") in levels_of(this_machine())
EMULATED = AMX_EMULATED.requires <= this_machine().features
ISAS = [isa_by_name("amx")] * REAL + [AMX_EMULATED] * EMULATED
needs_emulation = pytest.mark.skipif(not EMULATED, reason="no AVX-512 VNNI")


class Model:
    """The manual's description of the instructions, in numpy."""

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        self.shapes, self.tiles = shapes, np.zeros((8, 16, 64), "uint8")

    def load(self, tile: int, memory: np.ndarray, stride: int) -> None:
        rows, width = self.shapes[tile]
        self.tiles[tile] = 0
        for row in range(rows):
            self.tiles[tile, row, :width] = memory[row * stride : row * stride + width]

    def dot(self, into: int, a: int, b: int) -> None:
        assert self.shapes[into][0] == self.shapes[a][0] and self.shapes[into][1] == self.shapes[b][1]
        assert self.shapes[a][1] == 4 * self.shapes[b][0]
        total = self.tiles[into].view("int32")
        left = self.tiles[a].reshape(16, 16, 4).astype("int32")
        right = self.tiles[b].view("int8").reshape(16, 16, 4).astype("int32")
        for row in range(self.shapes[into][0]):
            for column in range(self.shapes[into][1] // 4):
                for k in range(self.shapes[a][1] // 4):
                    total[row, column] += left[row, k] @ right[k, column]

    def store(self, tile: int, memory: np.ndarray, stride: int) -> None:
        rows, width = self.shapes[tile]
        for row in range(rows):
            memory.view("uint8")[row * stride : row * stride + width] = self.tiles[tile, row, :width]


def product_kernel(isa: Isa, shapes: Sequence[tuple[int, int]], stride: int) -> Compiled:
    """One product of tile 4 and tile 6 on top of what tile 0 holds; tile 0 comes from and goes to `c`."""
    operands = [
        (name, dtype, Layout.dense((1024,)))
        for name, dtype in (("a", "uint8"), ("b", "int8"), ("c", "int32"), ("d", "int32"))
    ]
    with kernel("product", operands) as built:
        a, b, c, d = (amx.Memory(x.buffer, x.dtype, 0) for x in built.operands)
        unit = amx.TileUnit(isa.emulated)
        unit.configure(shapes)
        unit.emit(amx.TILEZERO, 1)
        unit.emit(amx.TILELOADD, 4, a, T.int64(stride))
        unit.emit(amx.TILELOADDT1, 6, b, T.int64(64))
        unit.emit(amx.TILELOADD, 0, c, T.int64(64))
        unit.emit(amx.TDPBUSD, 0, 4, 6)
        unit.emit(amx.TILESTORED, 0, d, T.int64(128))
        unit.emit(amx.TILERELEASE)
    return Compiled(built.func, isa, 4)


def product(isa: Isa, shapes: Sequence[tuple[int, int]], stride: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """(what the kernel stores, its operands)."""
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 256, 1024).astype("uint8"), rng.integers(-128, 128, 1024).astype("int8")
    c = rng.integers(-(2**31), 2**31, 1024).astype("int32")
    operands = [a, b, c, np.full(1024, 7, "int32")]
    return product_kernel(isa, shapes, stride).run(operands)[-1], operands


@pytest.mark.skipif(not ISAS, reason="neither tiles nor AVX-512 VNNI")
@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(
    ("rows", "k", "columns"), [(16, 64, 16), (7, 64, 16), (16, 20, 16), (1, 4, 1), (5, 36, 9), (16, 64, 3)]
)
def test_instructions_do_what_the_manual_says(isa: Isa, rows: int, k: int, columns: int) -> None:
    shapes = [(rows, 4 * columns)] * 4 + [(rows, k)] * 2 + [(k // 4, 4 * columns)] * 2
    got, (a, b, c, right) = product(isa, shapes, 60)
    model = Model(shapes)
    model.load(4, a, 60)
    model.load(6, b.view("uint8"), 64)
    model.load(0, c.view("uint8"), 64)
    model.dot(0, 4, 6)
    model.store(0, right, 128)
    np.testing.assert_array_equal(got, right)


REFUSED = [
    (0, 8, 64),
    (0, 17, 64),
    (0, 16, 72),
    (4, 15, 64),
    (4, 16, 60),
    (4, 0, 0),
    (4, 16, 0),
    (6, 15, 64),
    (6, 16, 32),
]


@needs_emulation
@pytest.mark.parametrize(("tile", "rows", "width"), REFUSED)
def test_emulation_poisons_what_the_processor_refuses(tile: int, rows: int, width: int) -> None:
    shapes = [(16, 64)] * 8
    shapes[tile] = (rows, width)
    got, _ = product(AMX_EMULATED, shapes, 60)
    assert (got.reshape(-1, 32)[:16, :16] == amx.POISON).all()


@needs_emulation
def test_registers_are_cleared_by_configuring_and_loading() -> None:
    """Rows and bytes outside a tile's shape are zero, also where a larger tile was before."""
    operands = [("x", "int32", Layout.dense((256,))), ("y", "int32", Layout.dense((256,)))]
    with kernel("clearing", operands) as built:
        x, y = (amx.Memory(o.buffer, "int32", 0) for o in built.operands)
        unit = amx.TileUnit(True)
        unit.configure([(16, 64)] * 8)
        unit.emit(amx.TILELOADD, 0, x, T.int64(64))
        unit.configure([(16, 64)] * 8)
        unit.emit(amx.TILESTORED, 0, y, T.int64(64))
    got = Compiled(built.func, AMX_EMULATED, 2).run([np.ones(256, "int32"), np.ones(256, "int32")])[-1]
    assert not got.any()
