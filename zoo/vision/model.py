"""The network: a residual CNN for 28x28 grey images, after He et al., "Deep Residual Learning" (CVPR 2016)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Shape:
    """The network.

    Attributes:
        widths: channels of the three stages (28x28, 14x14 and 7x7).
        depth: residual blocks a stage.
        dropout: share of the pooled features dropped in training.
    """

    widths: tuple[int, int, int] = (16, 48, 96)  # multiples of 16, so that vector lanes are full
    depth: int = 1
    dropout: float = 0.0


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the input (He et al. 2016, figure 2).

    Where the shape changes, a strided 1x1 convolution projects the input (their option B).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.project: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.project = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map float32 (N, inputs, H, W) to float32 (N, outputs, H / stride, W / stride)."""
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return torch.relu(y + (x if self.project is None else self.project(x)))


class VisionNet(nn.Module):
    """3x3 stem, residual blocks at 28x28, 14x14 and 7x7, global average pool, dense layer to 10 classes."""

    def __init__(self, shape: Shape | None = None, classes: int = 10) -> None:
        super().__init__()
        shape = shape or Shape()
        first, _, last = shape.widths
        self.stem = nn.Conv2d(1, first, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(first)
        blocks, inputs = [], first
        for stage, width in enumerate(shape.widths):
            for place in range(shape.depth):
                blocks.append(ResidualBlock(inputs, width, 2 if stage and not place else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(shape.dropout)
        self.head = nn.Linear(last, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map float32 (N, 1, 28, 28), normalised by `dlc.zoo.vision.data.normalise`, to float32 logits (N, 10)."""
        x = torch.relu(self.norm(self.stem(image)))
        return self.head(self.dropout(torch.flatten(self.pool(self.blocks(x)), 1)))
