"""Memory: where each tensor lies in the one DRAM arena of a program, and how the host packs and unpacks it.

An activation is stored (C / 16, rows, columns, 16) as int8 codes (the uint8 code xor 0x80), with a ring around each
plane that holds what its readers' padding must hold. Rings are written once, when the program is loaded: nothing ever
overwrites them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dlc.targets.vta.config import BLOCK
from dlc.targets.vta.layers import Patches, Shape, blocks

ALIGNMENT = 256  # a WGT element


@dataclass(frozen=True)
class Tensor:
    """A place in the arena.

    Attributes:
        shape: channels, height and width.
        ring: rows above, columns to the left, rows below, columns to the right.
        fill: what the ring holds.
        offset: in bytes.
        planes: 4 for int32, stored as four planes of bytes, the lowest first.
        patches: set where the host lays out windows (see `layers.Patches`).
    """

    shape: Shape
    ring: tuple[int, int, int, int] = (0, 0, 0, 0)
    fill: int = 0
    offset: int = 0
    planes: int = 1
    patches: Patches | None = None

    @property
    def rows(self) -> int:
        """With the ring."""
        return self.shape[1] + self.ring[0] + self.ring[2]

    @property
    def columns(self) -> int:
        """With the ring."""
        return self.shape[2] + self.ring[1] + self.ring[3]

    @property
    def vectors(self) -> int:
        """Vectors of one plane."""
        return blocks(self.shape[0]) * self.rows * self.columns

    @property
    def bytes(self) -> int:
        """Of all planes."""
        return self.vectors * BLOCK * self.planes

    def address(self, block: int, row: int, column: int, plane: int = 0) -> int:
        """The vector index in DRAM; the ring has negative rows and columns."""
        inner = (block * self.rows + row + self.ring[0]) * self.columns + column + self.ring[1]
        return self.offset // BLOCK + plane * self.vectors + inner

    def view(self, arena: np.ndarray) -> np.ndarray:
        """The bytes as int8 (planes, blocks, rows, columns, 16), ring included."""
        flat = arena[self.offset : self.offset + self.bytes].view(np.int8)
        return flat.reshape(self.planes, -1, self.rows, self.columns, BLOCK)

    def inner(self, arena: np.ndarray) -> np.ndarray:
        """The same without the ring."""
        top, left = self.ring[:2]
        return self.view(arena)[:, :, top : top + self.shape[1], left : left + self.shape[2]]

    def write(self, arena: np.ndarray, codes: np.ndarray) -> None:
        """Pack uint8 codes (C, H, W) of one image."""
        if self.patches is not None:
            codes = windows(codes, self.patches, (self.fill + 128) & 0xFF)
        channels = self.shape[0]
        padded = np.zeros((blocks(channels) * BLOCK, *self.shape[1:]), np.int8)
        padded[:channels] = (codes ^ np.uint8(0x80)).view(np.int8)
        packed = padded.reshape(-1, BLOCK, *self.shape[1:]).transpose(0, 2, 3, 1)
        self.inner(arena)[0] = packed

    def read(self, arena: np.ndarray) -> np.ndarray:
        """Unpack one image: uint8 codes (C, H, W), or int32."""
        planes = self.inner(arena).transpose(0, 1, 4, 2, 3).reshape(self.planes, -1, *self.shape[1:])
        planes = np.ascontiguousarray(planes[:, : self.shape[0]])
        if self.planes == 1:
            return planes[0].view(np.uint8) ^ np.uint8(0x80)
        return np.ascontiguousarray(np.moveaxis(planes, 0, -1)).view("<i4")[..., 0]

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Tensor:
        """What `as_json` wrote."""
        patches = record["patches"]
        made = Patches(**{k: tuple(v) for k, v in patches.items()}) if patches else None
        return cls(
            tuple(record["shape"]), tuple(record["ring"]), record["fill"], record["offset"], record["planes"], made
        )


def windows(codes: np.ndarray, patches: Patches, zero: int) -> np.ndarray:
    """Every window of (C, H, W) as a column: (C * kh * kw, out H, out W), padded with `zero`."""
    top, left, bottom, right = patches.pads
    padded = np.pad(codes, [(0, 0), (top, bottom), (left, right)], constant_values=np.uint8(zero))
    spans = [d * (k - 1) + 1 for d, k in zip(patches.dilations, patches.kernel, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(1, 2))
    view = view[:, :: patches.strides[0], :: patches.strides[1], :: patches.dilations[0], :: patches.dilations[1]]
    return view.transpose(0, 3, 4, 1, 2).reshape(-1, *view.shape[1:3])


@dataclass
class Arena:
    """Hands out places.

    Attributes:
        size: bytes so far, a multiple of `ALIGNMENT`.
        constants: (offset, bytes) of what is there from the start.
    """

    size: int = 0
    constants: list[tuple[int, bytes]] = field(default_factory=list)

    def reserve(self, size: int) -> int:
        """The offset of so many bytes."""
        offset = self.size
        self.size += -(-size // ALIGNMENT) * ALIGNMENT
        return offset

    def constant(self, data: bytes) -> int:
        """The offset of bytes that are there from the start."""
        offset = self.reserve(len(data))
        self.constants.append((offset, data))
        return offset
