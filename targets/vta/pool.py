"""Code for maximum pooling: rows into ACC, one ALU instruction a window position, the results stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dlc.targets.vta.config import Config
from dlc.targets.vta.conv import ranges, reach
from dlc.targets.vta.generate import Generator, Region
from dlc.targets.vta.isa import Alu, AluOp, Memory
from dlc.targets.vta.layers import Layer, blocks
from dlc.targets.vta.stream import NONE


@dataclass(frozen=True)
class PoolTiling:
    """Outputs and blocks a tile."""

    rows: int
    columns: int
    outputs: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}x{16 * self.outputs}"


def needs(layer: Layer, tiling: PoolTiling) -> int:
    """ACC entries of one context: the results, and the image that they come from."""
    image = reach(layer, 0, tiling.rows) * reach(layer, 1, tiling.columns)
    return (tiling.rows * tiling.columns + image) * tiling.outputs


def choose(layer: Layer, config: Config) -> PoolTiling | None:
    """The largest tile that fits one of two contexts, whole rows first; None where not even one output does."""
    half = config.accs // 2
    channels, height, width = blocks(layer.shape[0]), layer.shape[1], layer.shape[2]
    columns = next((c for c in range(width, 0, -1) if needs(layer, PoolTiling(1, c, 1)) <= half), 0)
    if not columns:
        return None
    rows = next(r for r in range(height, 0, -1) if needs(layer, PoolTiling(r, columns, 1)) <= half)
    outputs = next(b for b in range(channels, 0, -1) if needs(layer, PoolTiling(rows, columns, b)) <= half)
    return PoolTiling(rows, columns, outputs)


@dataclass
class PoolStep:
    """One tile: outputs [y0, y1) x [x0, x1) of blocks [b0, b1)."""

    layer: int
    pool: Layer
    y: tuple[int, int]
    x: tuple[int, int]
    b: tuple[int, int]
    reads: Sequence[Region] = ()
    writes: Sequence[Region] = ()

    def __post_init__(self) -> None:
        self.writes = (Region(self.pool.output, *self.b, *self.y),)

    def load_weights(self, gen: Generator) -> None:
        """It has none."""

    def load_inputs(self, gen: Generator) -> None:
        """ACC is loaded by the compute engine."""

    def run(self, gen: Generator) -> None:
        """Load, compare, store."""
        pool, stream = self.pool, gen.stream
        gen.parity, gen.params = 1 - gen.parity, None
        (y0, y1), (x0, x1), (b0, b1) = self.y, self.x, self.b
        height, width, count = y1 - y0, x1 - x0, b1 - b0
        top, left = y0 * pool.strides[0] - pool.pads[0], x0 * pool.strides[1] - pool.pads[1]
        columns, pixels = reach(pool, 1, width), height * width
        source = Region(pool.x, b0, b1, top, top + reach(pool, 0, height))
        image = (source.y1 - source.y0) * columns
        base = gen.parity * (gen.config.accs // 2)
        inside, end = base + count * pixels, base + count * (pixels + image)
        after = [gen.written_by([source]), stream.stores_of(base, end)]
        for position, block in enumerate(range(b0, b1)):
            gen.load_rows(Memory.ACC8, inside + position * image, source, block, left, left + columns, after)
        gen.reset(base, count * pixels)
        index = self._compare(gen, base, inside, columns, image)
        stream.zero[base:end] = False
        region = self.writes[0]
        for position, block in enumerate(range(b0, b1)):
            gen.store_rows(base + position * pixels, region, block, x0, x1, 0, index)

    def _compare(self, gen: Generator, base: int, inside: int, columns: int, image: int) -> int:
        """Add the window's first element to zero, then take the maximum with each of the others."""
        pool, index = self.pool, NONE
        height, width = self.y[1] - self.y[0], self.x[1] - self.x[0]
        places = np.arange(self.b[1] - self.b[0])
        for ky in range(pool.kernel[0]):
            for kx in range(pool.kernel[1]):
                offset = ky * pool.dilations[0] * columns + kx * pool.dilations[1]
                uops = np.zeros((len(places), 3), np.int64)
                uops[:, 0] = base + places * height * width
                uops[:, 1] = inside + places * image + offset
                begin = gen.stream.load_uops(uops)
                index = gen.stream.emit(
                    Alu(
                        uop_begin=begin, uop_end=begin + len(places), iter_out=height, iter_in=width,
                        dst_factor_out=width, dst_factor_in=1, src_factor_out=pool.strides[0] * columns,
                        src_factor_in=pool.strides[1], alu_opcode=AluOp.ADD if ky == kx == 0 else AluOp.MAX,
                    )
                )  # fmt: skip
        return index


def steps(number: int, layer: Layer, tiling: PoolTiling) -> Iterator[PoolStep]:
    """The steps of a layer in order."""
    for y in ranges(layer.shape[1], tiling.rows):
        for x in ranges(layer.shape[2], tiling.columns):
            for b in ranges(blocks(layer.shape[0]), tiling.outputs):
                yield PoolStep(number, layer, y, x, b)
