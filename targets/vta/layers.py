"""What the accelerator runs, layer by layer: plain records, and the forms that other layers are brought into.

There are two kinds. A *convolution* with its epilogue covers dense layers (a window as large as the image), sums over
windows (ones as weights, each channel by itself) and additions (an identity, with a residual). A *maximum* over windows
is the other.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from math import ceil

import numpy as np

from dlc.ir.graph import Origin
from dlc.targets.vta.config import BLOCK

Shape = tuple[int, int, int]  # channels, height, width


@dataclass(frozen=True, eq=False)
class Requantise:
    """``q = clamp(((t0 * m0 [+ (residual - residual_zero) * m1] + 2**(s-1)) >> s) + zero, lo, hi)``, codes uint8.

    Attributes:
        multipliers: one int32 vector of the output channels for each term.
        shift: one a channel.
    """

    multipliers: tuple[np.ndarray, ...]
    shift: np.ndarray
    zero: int
    lo: int
    hi: int
    residual_zero: int = 0


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer.

    Attributes:
        kind: ``conv`` or ``max``.
        x, output: names of values.
        x_shape, shape: of one image.
        pads: top, left, bottom, right.
        x_zero: zero point of x.
        weight: int8 (O, C / groups, kh, kw).
        bias: int32 (O,), of the sum over ``q - x_zero``.
        requantise: None where the sums themselves are wanted, as int32.
        residual: the second term's value.
        macs: multiplications that the model asks for.
        patches: x is laid out by the host as one column a window (kernel, strides, pads of the layer before).
    """

    kind: str
    x: str
    output: str
    x_shape: Shape
    shape: Shape
    origin: Origin = field(default_factory=Origin)
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1
    x_zero: int = 0
    weight: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 0), np.int8))
    bias: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    requantise: Requantise | None = None
    residual: str = ""
    macs: int = 0
    patches: Patches | None = None

    @property
    def diagonal(self) -> bool:
        """Whether output block i reads input block i alone: depthwise, or groups inside blocks of 16."""
        width = self.x_shape[0] // self.groups
        return self.groups > 1 and self.x_shape[0] == self.shape[0] and BLOCK % width == 0

    @functools.cached_property
    def uniform(self) -> bool:
        """Whether all elements of a window have one weight, as in a sum: then one block of weights serves them all."""
        return self.diagonal and bool(np.all(self.weight == self.weight[:, :, :1, :1]))

    @property
    def taps(self) -> int:
        """Blocks of weights for one output and one input block."""
        return 1 if self.uniform else self.kernel[0] * self.kernel[1]

    @property
    def ring(self) -> tuple[int, int, int, int]:
        """Padding that its windows reach: top, left, bottom, right."""
        ends = []
        for axis in (0, 1):
            reach = (self.shape[1 + axis] - 1) * self.strides[axis] + self.dilations[axis] * (self.kernel[axis] - 1) + 1
            ends.append(max(0, reach - self.x_shape[1 + axis] - self.pads[axis]))
        return (self.pads[0], self.pads[1], *ends)  # type: ignore[return-value]

    @property
    def fill(self) -> int:
        """The int8 code that padding must hold: real zero, or what never wins a maximum."""
        return -128 if self.kind == "max" else self.x_zero - 128


@dataclass(frozen=True)
class Patches:
    """How the host lays a window out along the channels: element (c, ky, kx) is channel ``(c * kh + ky) * kw + kx``."""

    shape: Shape
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]


def blocks(channels: int) -> int:
    """Vectors of 16 that hold so many channels."""
    return ceil(channels / BLOCK)


def with_patches(layer: Layer) -> Layer:
    """A convolution of a program's input over patches, where that takes fewer blocks, as of few channels."""
    channels, taps = layer.x_shape[0], layer.kernel[0] * layer.kernel[1]
    if layer.kind != "conv" or layer.groups != 1 or blocks(channels * taps) >= blocks(channels) * taps:
        return layer
    patches = Patches(layer.x_shape, layer.kernel, layer.strides, layer.pads, layer.dilations)
    return replace(
        layer,
        patches=patches,
        x_shape=(channels * taps, *layer.shape[1:]),
        kernel=(1, 1),
        strides=(1, 1),
        pads=(0, 0, 0, 0),
        dilations=(1, 1),
        weight=layer.weight.reshape(layer.shape[0], -1, 1, 1),
    )


def weight_blocks(layer: Layer) -> np.ndarray:
    """The weights as the array reads them: int8 (O / 16, I / 16, taps, 16, 16); one input block where diagonal."""
    out, channels, taps = layer.shape[0], layer.x_shape[0], layer.taps
    per_out, per_in = out // layer.groups, channels // layer.groups
    output_blocks, input_blocks = blocks(out), 1 if layer.diagonal else blocks(channels)
    packed = np.zeros((output_blocks * BLOCK, input_blocks * BLOCK, taps), np.int8)
    source = layer.weight.reshape(out, per_in, -1)[:, :, :taps]
    o = np.arange(out)
    first = o // per_out * per_in
    if layer.diagonal:
        first = first % BLOCK
    packed[o[:, None], first[:, None] + np.arange(per_in)[None, :]] = source
    shaped = packed.reshape(output_blocks, BLOCK, input_blocks, BLOCK, taps)
    return np.ascontiguousarray(shaped.transpose(0, 2, 4, 1, 3))


def folded_bias(layer: Layer) -> np.ndarray:
    """The bias of the sum over ``q - 128``, as int64: ``bias + (128 - x_zero) * sum of weights``."""
    sums = layer.weight.astype(np.int64).sum(axis=(1, 2, 3))
    return np.asarray(layer.bias.astype(np.int64) + (128 - layer.x_zero) * sums)
