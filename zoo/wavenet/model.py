"""The network (van den Oord et al., "WaveNet: A Generative Model for Raw Audio", 2016) and the LSTM beside it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dlc.zoo.wavenet.data import BANDS, LEVELS


@dataclass(frozen=True)
class Shape:
    """The network's size.

    Attributes:
        dilations: of each layer's convolution of two taps.
        residual: channels between layers.
        skip: channels of the sum of all layers' skip connections.
        bands: of the mel frames it is conditioned on; 0 for none.
    """

    dilations: tuple[int, ...] = tuple(1 << i for i in range(8)) * 2
    residual: int = 32
    skip: int = 64
    bands: int = 0


CONDITIONED = Shape(bands=BANDS)


class Layer(nn.Module):
    """A dilated causal convolution, a gated activation, a residual and a skip connection."""

    def __init__(self, shape: Shape, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.mix = nn.Conv1d(shape.residual, 2 * shape.residual, 2, dilation=dilation)
        self.skip = nn.Conv1d(shape.residual, shape.skip, 1)
        self.res = nn.Conv1d(shape.residual, shape.residual, 1)
        self.condition = nn.Conv1d(shape.bands, 2 * shape.residual, 1, bias=False) if shape.bands else None

    def forward(self, x: torch.Tensor, mel: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Map (N, residual, T) and (N, bands, T) to the layer's output and its skip connection (N, skip, T)."""
        mixed = self.mix(nn.functional.pad(x, (self.dilation, 0)))
        if self.condition is not None:
            mixed = mixed + self.condition(mel)
        a, b = mixed.chunk(2, 1)
        gated = torch.tanh(a) * torch.sigmoid(b)
        return x + self.res(gated), self.skip(gated)


class WaveNet(nn.Module):
    """Logits of the next code from the codes so far, and the mel frame of the next sample where it is conditioned.

    The embedding and the last layer begin as cosines of the code, so that neighbouring levels are alike from the start.
    """

    def __init__(self, shape: Shape = Shape()) -> None:  # noqa: B008
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(LEVELS, shape.residual)
        self.layers = nn.ModuleList(Layer(shape, dilation) for dilation in shape.dilations)
        self.head = nn.Conv1d(shape.skip, shape.skip, 1)
        self.out = nn.Conv1d(shape.skip, LEVELS, 1)
        with torch.no_grad():
            self.embedding.weight.copy_(cosines(shape.residual))
            self.out.weight.copy_(cosines(shape.skip)[:, :, None] * (2 / shape.skip) ** 0.5)

    def forward(self, codes: torch.Tensor, mel: torch.Tensor | None = None) -> torch.Tensor:
        """Map codes int64 (N, T) and frames (N, bands, T) to logits (N, 256, T); those at t tell of code t + 1."""
        x = self.embedding(codes).transpose(1, 2)
        total: torch.Tensor | float = 0.0
        for layer in self.layers:
            x, skip = layer(x, mel)
            total = total + skip
        return self.out(torch.relu(self.head(torch.relu(total))))


class Recurrent(nn.Module):
    """What WaveNet is compared with: an LSTM over the same embedded codes."""

    def __init__(self, embedding: int = 32, hidden: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(LEVELS, embedding)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.out = nn.Linear(hidden, LEVELS)
        with torch.no_grad():
            self.embedding.weight.copy_(cosines(embedding))
            self.out.weight.copy_(cosines(hidden) * (2 / hidden) ** 0.5)

    def forward(self, codes: torch.Tensor, mel: torch.Tensor | None = None) -> torch.Tensor:
        """Map codes int64 (N, T) to logits (N, 256, T); there are no frames."""
        return self.out(self.lstm(self.embedding(codes))[0]).transpose(1, 2)


def build(size: str) -> nn.Module:
    """The network of a size: ``plain``, ``mel`` (conditioned) or ``lstm``."""
    if size == "lstm":
        return Recurrent()
    return WaveNet(CONDITIONED if size == "mel" else Shape())


def cosines(count: int) -> torch.Tensor:
    """cos(pi k (code + 1/2) / 256) for k = 1 .. count: (256, count)."""
    position = (torch.arange(LEVELS) + 0.5)[:, None] / LEVELS
    return torch.cos(torch.pi * torch.arange(1, count + 1) * position)
