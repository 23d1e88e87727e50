"""The tile of a contraction: what a block computes, chosen by a small cost model within CUDA's limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dlc.ir.dims import symbols
from dlc.ir.interpret import evaluate_dim

THREADS = 256  # of every block; CUDA allows 1,024, and 256 leave 255 registers for each
# Extent assumed for a symbolic dimension, and processors that blocks are spread over (A100: 108, H100: 132).
GUESS, PROCESSORS = 8, 108


@dataclass(frozen=True)
class Tile:
    """A block computes m x n outputs, `depth` products at a time; a thread rows x columns of them."""

    m: int
    n: int
    rows: int
    columns: int
    depth: int = 16

    @property
    def lanes(self) -> int:
        """Threads along n."""
        return self.n // self.columns

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.depth}, {self.rows}x{self.columns} a thread"


# All have 256 threads.
TILES = (Tile(128, 64, 8, 4), Tile(64, 64, 4, 4), Tile(64, 32, 4, 2), Tile(64, 16, 2, 2), Tile(32, 32, 2, 2))


def guess(dim: Any) -> int:
    """An extent as a number, symbols being `GUESS`."""
    return evaluate_dim(dim, {str(v.name): GUESS for v in symbols([dim])})


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _cost(tile: Tile, m: int, n: int, batch: int) -> float:
    """Rounds of blocks over the processors, times the work of a block.

    A product costs one multiply-add and 1/rows + 1/columns reads of shared memory.
    """
    blocks = _up(m, tile.m) * _up(n, tile.n) * batch
    return _up(blocks, PROCESSORS) * tile.m * tile.n * (1 + 1 / tile.rows + 1 / tile.columns)


def choose(m: int, n: int, k: int, batch: int) -> Tile:
    """The cheapest tile for m x n x k products, `batch` times."""
    best = min(TILES, key=lambda t: _cost(t, max(m, 1), max(n, 1), max(batch, 1)))
    depth = min(best.depth, max(4, 1 << (max(k, 1) - 1).bit_length()))
    return Tile(best.m, best.n, best.rows, best.columns, depth)
