"""The state that code generation shares: buffer halves, parameters, data dependences, and the order of steps.

A layer is a list of *steps*. While the compute engine runs one, the load engine fetches the next into the other half
of its buffers, across layers too: what a step reads waits for the STOREs that wrote just those rows, not for the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dlc.targets.vta.arena import Tensor
from dlc.targets.vta.config import Config
from dlc.targets.vta.isa import Gemm, Load, Memory, Store
from dlc.targets.vta.stream import NONE, Stream


@dataclass(frozen=True)
class Region:
    """Rows [y0, y1) of blocks [b0, b1) of a value."""

    value: str
    b0: int
    b1: int
    y0: int
    y1: int

    def meets(self, other: Region) -> bool:
        """Whether they share an element (columns are not told apart)."""
        apart = self.b1 <= other.b0 or other.b1 <= self.b0 or self.y1 <= other.y0 or other.y1 <= self.y0
        return self.value == other.value and not apart


class Step(Protocol):
    """One turn of the compute engine.

    Attributes:
        layer: the number of its layer.
        reads: what its loads through the load engine read.
        writes: what it stores.
    """

    layer: int
    reads: Sequence[Region]
    writes: Sequence[Region]

    def load_weights(self, gen: Generator) -> None:
        """Emit the loads that depend on no other step's result."""

    def load_inputs(self, gen: Generator) -> None:
        """Emit the loads of `reads`."""

    def run(self, gen: Generator) -> None:
        """Emit what computes and stores."""


@dataclass
class Halves:
    """A buffer in two halves, each holding one piece of data by key."""

    half: int
    keys: list[object] = field(default_factory=lambda: [None, None])
    loads: list[int] = field(default_factory=lambda: [NONE, NONE])
    readers: list[int] = field(default_factory=lambda: [NONE, NONE])
    last: int = 1

    def acquire(self, key: object) -> tuple[int, bool]:
        """The half that holds `key`, and whether it must be loaded: into the half that was not used last."""
        if key in self.keys:
            self.last = self.keys.index(key)
            return self.last, False
        self.last = 1 - self.last
        self.keys[self.last] = key
        return self.last, True

    def base(self, slot: int) -> int:
        """The first entry of a half."""
        return slot * self.half


def weight_half(config: Config) -> int:
    """WGT entries of one half; the last entry of the buffer is the identity's."""
    return (config.weights - 1) // 2


class Generator:
    """What steps write to.

    Attributes:
        tensors: where each value lies.
        current: the number of the layer that is being written; `layers` has it for each instruction.
    """

    def __init__(self, config: Config, tensors: dict[str, Tensor], uop_base: int) -> None:
        self.config, self.tensors = config, tensors
        self.stream = Stream(config, uop_base)
        self.inp, self.wgt = Halves(config.inputs // 2), Halves(weight_half(config))
        self.identity = NONE  # the instruction that loaded it
        self.parity = 1
        self.params: object = None
        self.written: dict[str, list[tuple[Region, int]]] = {}
        self._stored: list[tuple[Region, int]] = []  # by the step that is being written
        self.layers: list[int] = []

    def written_by(self, regions: Sequence[Region]) -> int:
        """The last STORE that wrote any of the regions."""
        found = [index for r in regions for region, index in self.written.get(r.value, ()) if region.meets(r)]
        return max(found, default=NONE)

    def load_identity(self, dram: int) -> None:
        """Keep the identity in the last entry of WGT: it moves INP to ACC."""
        if self.identity == NONE:
            entry = self.config.weights - 1
            self.identity = self.stream.emit(
                Load(memory=Memory.WGT, sram_base=entry, dram_base=dram, x_size=1, x_stride=1)
            )

    # --- pieces of code that layers share ---

    def load_rows(
        self, memory: Memory, sram: int, region: Region, block: int, x0: int, x1: int, after: Sequence[int]
    ) -> int:
        """LOAD one block of a region, columns [x0, x1), densely to `sram`."""
        tensor = self.tensors[region.value]
        return self.stream.emit(
            Load(
                memory=memory,
                sram_base=sram,
                dram_base=tensor.address(block, region.y0, x0),
                y_size=region.y1 - region.y0,
                x_size=x1 - x0,
                x_stride=tensor.columns,
            ),
            after,
        )

    def reset(self, base: int, count: int) -> None:
        """Make ACC entries zero, where they are not known to be."""
        if self.stream.zero[base : base + count].all():
            return
        begin = self.stream.load_uops(np.asarray([[base, 0, 0]]))
        self.stream.emit(
            Gemm(reset=True, uop_begin=begin, uop_end=begin + 1, iter_in=count, dst_factor_in=1),
            [self.stream.stores_of(base, base + count)],
        )
        self.stream.zero[base : base + count] = True

    def store_rows(self, sram: int, region: Region, block: int, x0: int, x1: int, plane: int, after: int) -> None:
        """STORE one block of a region, columns [x0, x1)."""
        tensor = self.tensors[region.value]
        index = self.stream.store(
            Store(
                sram_base=sram,
                dram_base=tensor.address(block, region.y0, x0, plane),
                y_size=region.y1 - region.y0,
                x_size=x1 - x0,
                x_stride=tensor.columns,
            ),
            after,
        )
        self._stored.append((Region(region.value, block, block + 1, region.y0, region.y1), index))

    # --- the order of steps ---

    def _labelled(self, layer: int) -> None:
        missing = len(self.stream.instructions) - len(self.layers)
        self.layers += [layer] * missing

    def write(self, steps: Sequence[Step]) -> None:
        """Write all steps: each step's loads before the step ahead of it computes, where their data are there."""
        stores = [NONE, NONE]  # the last STORE before the step ahead, and before the one ahead of that
        steps[0].load_weights(self)
        steps[0].load_inputs(self)
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            early = False
            if following is not None:
                following.load_weights(self)
                waits = any(w.meets(r) for w in step.writes for r in following.reads)
                early = not waits and self.written_by(following.reads) <= stores[0]
                if early:
                    following.load_inputs(self)
                self._labelled(following.layer)
            step.run(self)
            # One token for the whole step: readers wait for its last STORE.
            for region, index in self._stored:
                self.written.setdefault(region.value, []).append((region, max(self._stored[-1][1], index)))
            self._stored = []
            self._labelled(step.layer)
            stores = [stores[1], int(self.stream.stored.max())]
            if following is not None and not early:
                following.load_inputs(self)
                self._labelled(following.layer)
