"""Choosing how a convolution is cut: all tilings that fit the buffers twice over, ranked by an estimate of their time
from traffic and multiplications; the best few are written out and timed in the cycle model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from math import ceil

from dlc.targets.vta.config import Config
from dlc.targets.vta.conv import Job, Tiling, acc_half, needs, reach
from dlc.targets.vta.generate import weight_half
from dlc.targets.vta.isa import AluOp
from dlc.targets.vta.layers import blocks
from dlc.targets.vta.match import DeclinedError
from dlc.targets.vta.timing import BYTES_A_CYCLE, ISSUE, LATENCY

TIMED = 6  #: tilings that are written out and timed
_MOST_OUTPUTS = 16  # blocks a tile: more parameters than these leave too little of ACC
_SIZES = {"INP": 16, "WGT": 256, "ACC": 64}


def _limits(job: Job, config: Config, outputs: int) -> dict[str, int]:
    return {
        "INP": config.inputs // 2,
        "WGT": weight_half(config),
        "ACC": acc_half(config, job.epilogue, outputs),
    }


def _fits(job: Job, tiling: Tiling, config: Config) -> bool:
    limits = _limits(job, config, tiling.outputs)
    return all(used <= limits[name] for name, used in needs(job, tiling).items())


def check(job: Job, config: Config) -> None:
    """Raise `DeclinedError`, with the numbers, where not even the smallest tile fits."""
    smallest = Tiling(1, 1, 1, 1, True)
    limits = _limits(job, config, 1)
    for name, used in needs(job, smallest).items():
        if used > limits[name]:
            size = _SIZES[name]
            raise DeclinedError(
                f"too large for the {name} buffer at its smallest tile: "
                f"needs {used * size} of {limits[name] * size} bytes"
            )


def _divisions(total: int, most: int) -> list[int]:
    """Sizes at most `most` that cut `total` into equal counts of pieces, each count once."""
    return sorted({ceil(total / ceil(total / size)) for size in range(1, min(total, most) + 1)}, reverse=True)


def candidates(job: Job, config: Config) -> Iterator[Tiling]:
    """Every tiling that fits, with few sizes of each kind."""
    layer = job.layer
    for outputs in _divisions(blocks(layer.shape[0]), _MOST_OUTPUTS):
        for inputs in _divisions(job.input_blocks, job.input_blocks):
            for columns in [c for c in _divisions(layer.shape[2], layer.shape[2]) if c * 8 >= layer.shape[2]]:
                sizes = [r for r in _divisions(layer.shape[1], layer.shape[1])]
                fitting = [r for r in sizes if _fits(job, Tiling(r, columns, outputs, inputs, True), config)]
                for rows in fitting[:2]:
                    yield Tiling(rows, columns, outputs, inputs, True)
                    yield Tiling(rows, columns, outputs, inputs, False)


def estimate(job: Job, tiling: Tiling) -> float:
    """Cycles: the longer of loading and computing, a little of the shorter, and the first load."""
    layer = job.layer
    taps = layer.kernel[0] * layer.kernel[1]
    rows, columns = ceil(layer.shape[1] / tiling.rows), ceil(layer.shape[2] / tiling.columns)
    tiles, groups = rows * columns, ceil(blocks(layer.shape[0]) / tiling.outputs)
    chunks = ceil(job.input_blocks / tiling.inputs)
    image = reach(layer, 0, tiling.rows) * reach(layer, 1, tiling.columns)
    input_load = image * (tiling.outputs if layer.diagonal else job.input_blocks) * 16 / BYTES_A_CYCLE
    weight_load = tiling.outputs * job.input_blocks * layer.taps * 256 / BYTES_A_CYCLE
    if tiling.weights_outside:
        weights = weight_load * groups * (1 if chunks <= 2 else tiles)
        inputs = input_load * tiles * (1 if tiles * chunks <= 2 and not layer.diagonal else groups)
    else:
        inputs = input_load * tiles * (1 if chunks <= 2 and not layer.diagonal else groups)
        weights = weight_load * groups * (1 if groups * chunks <= 2 else tiles)
    steps = tiles * groups * chunks
    load = weights + inputs + steps * 2 * LATENCY
    pixels = layer.shape[1] * layer.shape[2] * blocks(layer.shape[0])
    per_block = sum(2 * ISSUE if s.operation == AluOp.SETQ else 0 for s in job.epilogue.steps)
    alu = pixels * sum(1 if s.use_imm else 2 for s in job.epilogue.steps if s.operation != AluOp.SETQ)
    alu += tiles * groups * tiling.outputs * per_block + (pixels if layer.residual else 0)
    compute = pixels * job.input_blocks * taps + steps * 3 * ISSUE + alu
    return max(load, compute) + 0.05 * min(load, compute) + (input_load + weight_load) / chunks


def choose(job: Job, config: Config, time: Callable[[Tiling], int]) -> Tiling:
    """The tiling that `time` (cycles of the layer alone) finds best among the best by estimate.

    Raises:
        DeclinedError: none fits; with the numbers.
    """
    check(job, config)
    ranked = sorted(candidates(job, config), key=functools.partial(estimate, job))
    return min(ranked[:TIMED], key=time)
