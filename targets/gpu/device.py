"""What the GPU runtime needs of a device: memory, an ordered queue of work, and kernels by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class Device(Protocol):
    """One GPU with the kernels of one package, and a queue that does what it is given in order.

    Buffers and kernels are the device's own objects and are freed with their last reference. Every method raises
    DlcError where the device refuses or has failed.

    Attributes:
        name: how users know it.
        grid_limits: the most blocks along each of the three axes.
    """

    name: str
    grid_limits: tuple[int, int, int]

    def activate(self) -> None:
        """Make ready for calls from this thread."""

    def allocate(self, size: int) -> Any:
        """A buffer of `size` bytes, at least one, that kernels read and write."""

    def upload(self, buffer: Any, array: np.ndarray) -> None:
        """Queue a copy of a contiguous array, not empty; it may not change before `finish`."""

    def download(self, array: np.ndarray, buffer: Any) -> None:
        """Queue a copy to a contiguous array, not empty; it is there after `finish`."""

    def kernel(self, symbol: str, buffers: Sequence[Any], dims: Sequence[int]) -> Any:
        """A kernel with its arguments: pointers, then extents as 32-bit ints."""

    def launch(self, kernel: Any, blocks: Sequence[int], threads: int) -> None:
        """Queue a kernel on a grid of up to three axes, `threads` threads a block along the first."""

    def finish(self) -> None:
        """Wait for everything that was queued."""
