"""Memory of large pages for what is read again and again.

On pages of 4 KiB the first-level TLB reaches a few hundred KiB, and which cache sets they fall into is chance: weights
that would fill a second-level cache exactly do not all stay there. Pages of 2 MiB lie in one piece.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np

_PAGE = 2 << 20
_LINE = 64
LEAST = 256 << 10  # bytes that the first-level TLB reaches on small pages: 64 of them
MOST = 4 << 20  # as large as second-level caches get: beyond, memory decides (16 and 4.2 MB gained nothing)


def large_pages(size: int) -> np.ndarray | None:
    """`size` bytes of zeros, uint8, at the beginning of a page; None where the system has no large pages to give."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    area = mmap.mmap(-1, -(-size // _PAGE) * _PAGE + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        area.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # the kernel was built without them
        return None
    whole = np.frombuffer(area, np.uint8)
    start = -whole.ctypes.data % _PAGE
    return whole[start : start + size]


def gathered(chunks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The same bytes, copied together into large pages where they are enough and not too many; else as they are."""
    sizes = [-(-chunk.nbytes // _LINE) * _LINE for chunk in chunks]
    total = sum(sizes)
    memory = large_pages(total) if LEAST <= total <= MOST else None
    if memory is None:
        return list(chunks)
    ends = np.cumsum(sizes)
    found = []
    for chunk, size, end in zip(chunks, sizes, ends.tolist(), strict=True):
        place = memory[end - size : end - size + chunk.nbytes]
        place[:] = chunk.reshape(-1).view(np.uint8)
        place.flags.writeable = False
        found.append(place)
    return found
