"""The network: a residual CNN for 28x28 grey images, after He et al., "Deep Residual Learning" (CVPR 2016)."""

from __future__ import annotations

import torch
from torch import nn

#: Channels of the three stages (28x28, 14x14 and 7x7). Multiples of 16, so that vector lanes are full.
WIDTHS = (16, 48, 96)


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
    """3x3 stem, three residual blocks at 28x28, 14x14 and 7x7, global average pool, dense layer to 10 classes."""

    def __init__(self, widths: tuple[int, int, int] = WIDTHS, classes: int = 10) -> None:
        super().__init__()
        first, second, third = widths
        self.stem = nn.Conv2d(1, first, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(first)
        self.blocks = nn.Sequential(
            ResidualBlock(first, first, 1), ResidualBlock(first, second, 2), ResidualBlock(second, third, 2)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(third, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map float32 (N, 1, 28, 28), normalised by `dlc.zoo.vision.data.normalise`, to float32 logits (N, 10)."""
        x = torch.relu(self.norm(self.stem(image)))
        return self.head(torch.flatten(self.pool(self.blocks(x)), 1))
