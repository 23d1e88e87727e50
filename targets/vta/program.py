"""A compiled program: instructions, the image of memory, the tensors; and how it is made from layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dlc.ir.graph import Origin
from dlc.targets.vta import conv, pool, tiles
from dlc.targets.vta.arena import Arena, Tensor
from dlc.targets.vta.config import BLOCK, Config, config_by_name
from dlc.targets.vta.conv import Job, Tiling
from dlc.targets.vta.epilogue import epilogue
from dlc.targets.vta.generate import Generator, Step
from dlc.targets.vta.isa import Instruction, decode_program, encode
from dlc.targets.vta.layers import Layer, weight_blocks, with_patches
from dlc.targets.vta.match import DeclinedError
from dlc.targets.vta.timing import Timing, simulate

ARRAY = BLOCK * BLOCK  #: multiplications a cycle


@dataclass
class LayerReport:
    """One layer's figures.

    Attributes:
        cycles: from the completion of what came before to its own.
        macs: multiplications that the model asks for.
        gemm_cycles: cycles in which the array works for it.
    """

    output: str
    origin: Origin
    kind: str
    tiling: str
    cycles: int
    macs: int
    gemm_cycles: int

    @property
    def utilisation(self) -> float:
        """Of the array's multiplications in these cycles, the share that the model asked for."""
        return self.macs / (ARRAY * max(self.cycles, 1))


@dataclass
class Program:
    """What runs.

    Attributes:
        config: the hardware.
        instructions: the stream.
        size: bytes of the arena.
        constants: (offset, bytes) that are there from the start: weights, parameters, micro-ops.
        tensors: by value name; a program input that is laid out for one reader has a name of its own.
        inputs: value name -> the tensors that the host writes it to.
        reports: one a layer, in order.
        timing: of one image.
    """

    config: Config
    instructions: list[Instruction]
    size: int
    constants: list[tuple[int, bytes]]
    tensors: dict[str, Tensor]
    inputs: dict[str, list[str]]
    reports: list[LayerReport] = field(default_factory=list)
    timing: Timing | None = None

    def image(self) -> np.ndarray:
        """The arena as it is before the first run: constants, and every ring filled."""
        arena = np.zeros(self.size, np.uint8)
        for offset, data in self.constants:
            arena[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        for tensor in self.tensors.values():
            tensor.view(arena)[:] = tensor.fill
        return arena

    def as_json(self) -> dict[str, Any]:
        """All but the bytes."""
        return {
            "config": self.config.name,
            "version": self.config.version,
            "size": self.size,
            "tensors": {name: tensor.as_json() for name, tensor in self.tensors.items()},
            "inputs": self.inputs,
            "constants": [[offset, len(data)] for offset, data in self.constants],
        }

    def code(self) -> bytes:
        """The encoded stream."""
        return b"".join(encode(i, self.config) for i in self.instructions)

    @classmethod
    def from_json(cls, record: dict[str, Any], code: bytes | memoryview, constants: bytes | memoryview) -> Program:
        """What `as_json`, `code` and the joined constants hold."""
        config = config_by_name(record["config"])
        tensors = {name: Tensor.from_json(t) for name, t in record["tensors"].items()}
        pieces, position = [], 0
        for offset, length in record["constants"]:
            pieces.append((offset, bytes(constants[position : position + length])))
            position += length
        return cls(config, decode_program(code, config), record["size"], pieces, tensors, record["inputs"])


# --- placing ---------------------------------------------------------------------------------------------------------


def _patched(layers: Iterable[Layer], entries: set[str]) -> list[Layer]:
    """Layers that read a program's input through patches, where that is better, read a tensor of their own."""
    result = []
    for layer in layers:
        changed = with_patches(layer) if layer.x in entries else layer
        if changed.patches is not None:
            changed = replace(changed, x=f"{layer.x} for {layer.output}")
        result.append(changed)
    return result


def padding_conflict(layer: Layer, fills: dict[str, int]) -> None:
    """Note what a layer's padding must hold; raise `DeclinedError` where another layer wants something else there."""
    if any(layer.ring) and fills.setdefault(layer.x, layer.fill) != layer.fill:
        raise DeclinedError(
            f"its padding must hold the code {layer.fill + 128}, and another reader of its input needs "
            f"{fills[layer.x] + 128} there"
        )


def _place(
    layers: Sequence[Layer], inputs: Sequence[str], arena: Arena
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    shapes = {}
    rings: dict[str, tuple[int, int, int, int]] = {}
    fills: dict[str, int] = {}
    planes = {layer.output: 4 for layer in layers if layer.kind == "conv" and layer.requantise is None}
    hosts: dict[str, list[str]] = {name: [] for name in inputs}
    patches = {}
    for layer in layers:
        padding_conflict(layer, fills)
        shapes[layer.x], shapes[layer.output] = layer.x_shape, layer.shape
        if layer.residual:
            shapes.setdefault(layer.residual, layer.shape)
        old = rings.get(layer.x, (0, 0, 0, 0))
        rings[layer.x] = tuple(max(a, b) for a, b in zip(old, layer.ring, strict=True))  # type: ignore[assignment]
        source = layer.x.removesuffix(f" for {layer.output}") if layer.patches else layer.x
        for name, host in ((layer.x, source), (layer.residual, layer.residual)):
            if host in hosts and name not in hosts[host]:
                hosts[host].append(name)
        if layer.patches is not None:
            patches[layer.x], fills[layer.x] = layer.patches, layer.x_zero - 128
    tensors = {}
    for name, shape in shapes.items():
        tensor = Tensor(
            shape, rings.get(name, (0, 0, 0, 0)), fills.get(name, 0), 0, planes.get(name, 1), patches.get(name)
        )
        tensors[name] = replace(tensor, offset=arena.reserve(tensor.bytes))
    return tensors, hosts


# --- one layer -------------------------------------------------------------------------------------------------------


def _job(number: int, layer: Layer, config: Config, arena: Arena, identity: int) -> Job:
    made = epilogue(layer, config)
    weights = arena.constant(weight_blocks(layer).tobytes()) // ARRAY
    params = arena.constant(made.params.astype("<i4").tobytes()) // (4 * BLOCK)
    return Job(number, layer, made, weights, params, identity)


_CHOSEN: dict[tuple[object, ...], Tiling] = {}


def _tiling(job: Job, config: Config, tensors: dict[str, Tensor]) -> Tiling:
    """The best tiling; layers of one form have the same."""
    layer, made = job.layer, job.epilogue
    form = (
        config, layer.x_shape, layer.shape, layer.kernel, layer.strides, layer.pads, layer.dilations, layer.diagonal,
        layer.uniform, bool(layer.residual), made.steps, made.planes,
    )  # fmt: skip
    if form not in _CHOSEN:

        def time(tiling: Tiling) -> int:
            gen = Generator(config, tensors, 0)
            gen.write(list(conv.steps(replace(job, number=0), tiling)))
            return simulate(gen.stream.finish()).cycles

        _CHOSEN[form] = tiles.choose(job, config, time)
    return _CHOSEN[form]


def check_layer(layer: Layer, config: Config) -> None:
    """Raise `DeclinedError` where the accelerator cannot run a layer: no exact epilogue, or no tile that fits."""
    if layer.kind == "max":
        if pool.choose(layer, config) is None:
            need = pool.needs(layer, pool.PoolTiling(1, 1, 1)) * 64
            raise DeclinedError(f"its window needs {need} of {config.acc_bytes // 2} bytes of the ACC buffer")
        return
    tiles.check(Job(0, layer, epilogue(layer, config), 0, 0, 0), config)


# --- all -------------------------------------------------------------------------------------------------------------


def compile_layers(layers: Sequence[Layer], inputs: Sequence[str], config: Config) -> Program:
    """One program of all layers, in order; `inputs` are the values that the host writes.

    Raises:
        DeclinedError: a layer cannot be run; `check_layer` and `padding_conflict` say so before.
    """
    layers = _patched(layers, set(inputs))
    arena = Arena()
    tensors, hosts = _place(layers, inputs, arena)
    identity = arena.constant(np.eye(BLOCK, dtype=np.int8).tobytes()) // ARRAY
    steps: list[Step] = []
    tilings: list[str] = []
    for number, layer in enumerate(layers):
        if layer.kind == "max":
            cut = pool.choose(layer, config)
            assert cut is not None
            steps += pool.steps(number, layer, cut)
            tilings.append(str(cut))
        else:
            job = _job(number, layer, config, arena, identity)
            tiling = _tiling(job, config, tensors)
            steps += conv.steps(job, tiling)
            tilings.append(str(tiling))
    gen = Generator(config, tensors, arena.size // 4)
    gen.write(steps)
    program = gen.stream.finish()
    arena.constant(bytes(gen.stream.uops))
    timing = simulate(program)
    reports = _reports(layers, tilings, program, timing, gen.layers)
    return Program(config, program, arena.size, arena.constants, tensors, hosts, reports, timing)


def _reports(
    layers: Sequence[Layer],
    tilings: Sequence[str],
    program: Sequence[Instruction],
    timing: Timing,
    owner: Sequence[int],
) -> list[LayerReport]:
    from dlc.targets.vta.isa import Gemm
    from dlc.targets.vta.timing import compute_cycles

    ends, gemm = [0] * len(layers), [0] * len(layers)
    for index, number in enumerate(owner):
        ends[number] = max(ends[number], int(timing.finished[index]))
        if isinstance(program[index], Gemm):
            gemm[number] += compute_cycles(program[index])
    reports, before = [], 0
    for number, layer in enumerate(layers):
        cycles = max(0, ends[number] - before)
        before = max(before, ends[number])
        reports.append(
            LayerReport(layer.output, layer.origin, layer.kind, tilings[number], cycles, layer.macs, gemm[number])
        )
    return reports
