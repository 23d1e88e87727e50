"""Code for convolutions: tiles of outputs by blocks of channels, the reduction in chunks, the epilogue on the ALU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np

from dlc.targets.vta.alu import DRAIN
from dlc.targets.vta.config import Config
from dlc.targets.vta.epilogue import AluStep, Epilogue
from dlc.targets.vta.generate import Generator, Region
from dlc.targets.vta.isa import Alu, AluOp, Gemm, Load, Memory
from dlc.targets.vta.layers import Layer, blocks
from dlc.targets.vta.nest import Dim, pieces
from dlc.targets.vta.stream import NONE


@dataclass(frozen=True)
class Tiling:
    """How a layer is cut.

    Attributes:
        rows, columns: outputs a tile.
        outputs, inputs: blocks of 16 channels a tile and a chunk of the reduction.
        weights_outside: whether tiles of the image change fastest, and so weights stay, or groups of channels.
    """

    rows: int
    columns: int
    outputs: int
    inputs: int
    weights_outside: bool

    def __str__(self) -> str:
        order = "weights stay" if self.weights_outside else "inputs stay"
        return f"{self.rows}x{self.columns}x{16 * self.outputs} of {16 * self.inputs}, {order}"


@dataclass(frozen=True)
class Job:
    """A layer with what code generation needs of it.

    Attributes:
        number: the layer's place in the program.
        weights, params: where they lie in DRAM, in elements of WGT and of ACC.
        identity: the same of the identity's block of weights.
    """

    number: int
    layer: Layer
    epilogue: Epilogue
    weights: int
    params: int
    identity: int

    @property
    def input_blocks(self) -> int:
        """Blocks of the reduction."""
        return 1 if self.layer.diagonal else blocks(self.layer.x_shape[0])


def reach(layer: Layer, axis: int, outputs: int) -> int:
    """Input rows (axis 0) or columns (1) that so many outputs read."""
    return (outputs - 1) * layer.strides[axis] + layer.dilations[axis] * (layer.kernel[axis] - 1) + 1


def acc_half(config: Config, epilogue: Epilogue, outputs: int) -> int:
    """ACC entries of one of two contexts; the parameters of `outputs` blocks lie behind both."""
    return (config.accs - outputs * epilogue.params.shape[1]) // 2


def needs(job: Job, tiling: Tiling) -> dict[str, int]:
    """Entries of each buffer that one context takes."""
    layer = job.layer
    image = reach(layer, 0, tiling.rows) * reach(layer, 1, tiling.columns)
    results = tiling.rows * tiling.columns * tiling.outputs
    return {
        "INP": max(image * (tiling.outputs if layer.diagonal else tiling.inputs), results if layer.residual else 0),
        "WGT": tiling.outputs * tiling.inputs * layer.taps,
        "ACC": results * (2 if layer.residual else 1),
    }


@dataclass
class _Tile:
    """Outputs [y0, y1) x [x0, x1) of blocks [b0, b1), and where their accumulators are once they have a place."""

    y0: int
    y1: int
    x0: int
    x1: int
    b0: int
    b1: int
    base: int = NONE

    @property
    def size(self) -> int:
        """Vectors of the results."""
        return self.count * self.pixels

    @property
    def residual(self) -> int:
        """Where the residual lies, if there is one."""
        return self.base + self.size

    @property
    def pixels(self) -> int:
        return (self.y1 - self.y0) * (self.x1 - self.x0)

    @property
    def count(self) -> int:
        return self.b1 - self.b0


@dataclass
class ConvStep:
    """One chunk of the reduction of one tile; `last`: the tile ends here."""

    job: Job
    tile: _Tile
    c0: int
    c1: int
    first: bool
    last: bool
    reads: Sequence[Region] = ()
    writes: Sequence[Region] = ()
    layer: int = 0
    slot: int = 0
    weight_slot: int = 0

    def __post_init__(self) -> None:
        layer, tile = self.job.layer, self.tile
        self.layer = self.job.number
        top = tile.y0 * layer.strides[0] - layer.pads[0]
        bottom = top + reach(layer, 0, tile.y1 - tile.y0)
        part = (tile.b0, tile.b1) if layer.diagonal else (self.c0, self.c1)
        self.reads = (Region(layer.x, *part, top, bottom),)
        if self.last:
            self.writes = (Region(layer.output, tile.b0, tile.b1, tile.y0, tile.y1),)

    # --- loads ---

    def load_weights(self, gen: Generator) -> None:
        """The chunk's weights, where they are not there."""
        job, tile = self.job, self.tile
        key = (job.number, tile.b0, self.c0)
        self.weight_slot, missing = gen.wgt.acquire(key)
        slot = self.weight_slot
        if not missing:
            return
        taps = job.layer.taps
        whole = job.input_blocks * taps
        load = Load(
            memory=Memory.WGT,
            sram_base=gen.wgt.base(slot),
            dram_base=job.weights + tile.b0 * whole + self.c0 * taps,
            y_size=tile.count,
            x_size=(self.c1 - self.c0) * taps,
            x_stride=whole,
        )
        gen.wgt.loads[slot] = gen.stream.emit(load, [gen.wgt.readers[slot]])

    def load_inputs(self, gen: Generator) -> None:
        """The rows that the tile's windows reach."""
        layer, tile = self.job.layer, self.tile
        x0 = tile.x0 * layer.strides[1] - layer.pads[1]
        _load_inp(self, gen, x0, reach(layer, 1, tile.x1 - tile.x0))

    # --- computing ---

    def run(self, gen: Generator) -> None:
        """Multiply; behind the last chunk the epilogue and the stores."""
        tile = self.tile
        if self.first:
            gen.parity = 1 - gen.parity
            tile.base = gen.parity * acc_half(gen.config, self.job.epilogue, tile.count)
            gen.reset(tile.base, tile.size)
        self._multiply(gen)
        if self.last:
            _Finish(gen, self.job, tile).run()

    def _dims(self) -> tuple[Dim, ...]:
        layer, tile = self.job.layer, self.tile
        (kh, kw), (sy, sx), (dy, dx) = layer.kernel, layer.strides, layer.dilations
        height, width = tile.y1 - tile.y0, tile.x1 - tile.x0
        columns = reach(layer, 1, width)
        image = reach(layer, 0, height) * columns
        return (
            Dim(tile.count, dst=tile.pixels, src=image if layer.diagonal else 0, wgt=(self.c1 - self.c0) * layer.taps),
            Dim(height, dst=width, src=sy * columns),
            Dim(width, dst=1, src=sx),
            Dim(self.c1 - self.c0, src=image, wgt=layer.taps),
            Dim(kh, src=dy * columns, wgt=0 if layer.uniform else kw),
            Dim(kw, src=dx, wgt=0 if layer.uniform else 1),
        )

    def _multiply(self, gen: Generator) -> None:
        stream = gen.stream
        base = np.asarray([self.tile.base, gen.inp.base(self.slot), gen.wgt.base(self.weight_slot)])
        entries = slice(self.tile.base, self.tile.base + self.tile.size)
        loads = [gen.inp.loads[self.slot], gen.wgt.loads[self.weight_slot]]
        after = [*loads, stream.stores_of(entries.start, entries.stop)]
        index = NONE
        for piece in pieces(self._dims(), gen.config):
            begin = stream.load_uops(piece.uops + base)
            gemm = replace(piece.gemm, uop_begin=begin, uop_end=begin + len(piece.uops))
            index = stream.emit(gemm, after)
        stream.zero[entries] = False
        gen.inp.readers[self.slot] = gen.wgt.readers[self.weight_slot] = index


@dataclass
class ResidualStep:
    """The residual of a tile: through INP and the identity to accumulators of its own; then the tile's end."""

    job: Job
    tile: _Tile
    reads: Sequence[Region] = ()
    writes: Sequence[Region] = ()
    layer: int = 0
    slot: int = 0

    def __post_init__(self) -> None:
        layer, tile = self.job.layer, self.tile
        self.layer = self.job.number
        self.reads = (Region(layer.residual, tile.b0, tile.b1, tile.y0, tile.y1),)
        self.writes = (Region(layer.output, tile.b0, tile.b1, tile.y0, tile.y1),)

    def load_weights(self, gen: Generator) -> None:
        """The identity, once a program."""
        gen.load_identity(self.job.identity)

    def load_inputs(self, gen: Generator) -> None:
        """The residual's rows."""
        _load_inp(self, gen, self.tile.x0, self.tile.x1 - self.tile.x0)

    def run(self, gen: Generator) -> None:
        """Move, then finish the tile."""
        tile, stream, slot = self.tile, gen.stream, self.slot
        gen.reset(tile.residual, tile.size)
        begin = stream.load_uops(np.asarray([[tile.residual, gen.inp.base(slot), gen.config.weights - 1]]))
        after = [gen.inp.loads[slot], gen.identity, stream.stores_of(tile.residual, tile.residual + tile.size)]
        gemm = Gemm(uop_begin=begin, uop_end=begin + 1, iter_in=tile.size, dst_factor_in=1, src_factor_in=1)
        gen.inp.readers[slot] = stream.emit(gemm, after)
        stream.zero[tile.residual : tile.residual + tile.size] = False
        _Finish(gen, self.job, tile).run()


def _load_inp(step: ConvStep | ResidualStep, gen: Generator, x0: int, width: int) -> None:
    """Bring the region that a step reads, columns from `x0`, to a half of INP, where it is not there."""
    region = step.reads[0]
    step.slot, missing = gen.inp.acquire((region, x0, width))
    if not missing:
        return
    after = [gen.inp.readers[step.slot], gen.stream.fence(gen.written_by(step.reads))]
    image = (region.y1 - region.y0) * width
    for position, block in enumerate(range(region.b0, region.b1)):
        sram = gen.inp.base(step.slot) + position * image
        gen.inp.loads[step.slot] = gen.load_rows(Memory.INP, sram, region, block, x0, x0 + width, after)


@dataclass
class _Finish:
    """The end of a tile: parameters, the ALU's steps, stores."""

    gen: Generator
    job: Job
    tile: _Tile

    def run(self) -> None:
        epilogue = self.job.epilogue
        self.params = self._load_params()
        if epilogue.steps[0].operation == AluOp.SETQ:
            index = self._requantise(epilogue.steps[1])
            self._store(index, 0)
            return
        plane = 0
        for number, step in enumerate(epilogue.steps):
            index = self._alu(step)
            if epilogue.planes > 1 or number == len(epilogue.steps) - 1:
                self._store(index, plane)
                plane += 1

    def _load_params(self) -> int:
        """Keep the group's parameters behind the two contexts."""
        gen, job, tile = self.gen, self.job, self.tile
        entries = job.epilogue.params.shape[1]
        base, count = gen.config.accs - tile.count * entries, tile.count * entries
        if gen.params != (job.number, tile.b0, tile.b1):
            gen.params = (job.number, tile.b0, tile.b1)
            source = job.params + tile.b0 * entries
            load = Load(memory=Memory.ACC, sram_base=base, dram_base=source, x_size=count, x_stride=count)
            gen.stream.emit(load, [gen.stream.stores_of(base, base + count)])
            gen.stream.zero[base:] = False
        return base

    def _requantise(self, step: AluStep) -> int:
        """SETQ and REQ for each block."""
        stream, tile, entries = self.gen.stream, self.tile, self.job.epilogue.params.shape[1]
        index = NONE
        places = np.arange(tile.count)
        uops = np.zeros((2 * tile.count, 3), np.int64)
        uops[: tile.count, 1] = self.params + places * entries
        uops[tile.count :, 0] = tile.base + places * tile.pixels
        uops[tile.count :, 1] = tile.residual + places * tile.pixels if step.residual else 0
        begin = stream.load_uops(uops)
        loops: dict[str, Any] = {"iter_in": tile.pixels, "dst_factor_in": 1, "src_factor_in": int(step.residual)}
        for block in range(tile.count):
            setq = begin + block
            stream.emit(Alu(uop_begin=setq, uop_end=setq + 1, alu_opcode=AluOp.SETQ))
            req = begin + tile.count + block
            alu = Alu(
                uop_begin=req, uop_end=req + 1, alu_opcode=AluOp.REQ, use_imm=not step.residual, imm=step.imm, **loops
            )
            index = stream.emit(alu)
        if step.imm & DRAIN:
            stream.zero[tile.base : tile.residual + (tile.size if step.residual else 0)] = True
        return index

    def _alu(self, step: AluStep) -> int:
        """One step over all blocks at once."""
        stream, tile = self.gen.stream, self.tile
        places = np.arange(tile.count)[:, None]
        target = tile.residual if step.on_residual else tile.base
        uops = np.concatenate([target + places * tile.pixels, np.zeros_like(places), np.zeros_like(places)], axis=1)
        if step.residual:
            uops[:, 1] = tile.residual + places[:, 0] * tile.pixels
        elif step.param is not None:
            uops[:, 1] = self.params + places[:, 0] * self.job.epilogue.params.shape[1] + step.param
        begin = stream.load_uops(uops)
        alu = Alu(
            uop_begin=begin, uop_end=begin + tile.count, iter_in=tile.pixels, dst_factor_in=1,
            src_factor_in=int(step.residual), alu_opcode=step.operation, use_imm=step.use_imm, imm=step.imm,
        )  # fmt: skip
        return stream.emit(alu, [stream.stores_of(target, target + tile.size)])

    def _store(self, after: int, plane: int) -> None:
        tile = self.tile
        region = Region(self.job.layer.output, tile.b0, tile.b1, tile.y0, tile.y1)
        for position, block in enumerate(range(tile.b0, tile.b1)):
            sram = tile.base + position * tile.pixels
            self.gen.store_rows(sram, region, block, tile.x0, tile.x1, plane, after)


def ranges(total: int, size: int) -> list[tuple[int, int]]:
    """[0, total) in pieces of `size`, evened out so that the last is not much smaller."""
    count = ceil(total / size)
    return [(total * i // count, total * (i + 1) // count) for i in range(count)]


def steps(job: Job, tiling: Tiling) -> Iterator[ConvStep | ResidualStep]:
    """The steps of a layer in order. Chunks go forth and back, so that the last one of a tile is met again first."""
    layer = job.layer
    images = [(y, x) for y in ranges(layer.shape[1], tiling.rows) for x in ranges(layer.shape[2], tiling.columns)]
    groups = ranges(blocks(layer.shape[0]), tiling.outputs)
    chunks = ranges(job.input_blocks, tiling.inputs)
    if tiling.weights_outside:
        order = [(image, group) for group in groups for image in images]
    else:
        order = [(image, group) for image in images for group in groups]
    for number, (((y0, y1), (x0, x1)), (b0, b1)) in enumerate(order):
        tile = _Tile(y0, y1, x0, x1, b0, b1)
        for position, (c0, c1) in enumerate(chunks if number % 2 == 0 else chunks[::-1]):
            last = position == len(chunks) - 1 and not layer.residual
            yield ConvStep(job, tile, c0, c1, position == 0, last)
        if layer.residual:
            yield ResidualStep(job, tile)
