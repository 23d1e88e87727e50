"""Where the decoder looked as a picture: a heat map of source pieces (across) by pieces of the translation (down)."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

_CELL, _LETTER = 22, 7  # pixels of a square, and of a letter at most


def draw(source: Sequence[str], translation: Sequence[str], shares: NDArray[np.floating]) -> str:
    """An SVG of shares (len(translation), len(source)) in 0..1, white to dark blue."""
    left = 12 + _LETTER * max(map(len, translation))
    top = 12 + _LETTER * max(map(len, source))
    width, height = left + _CELL * len(source) + 10, top + _CELL * len(translation) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for column, piece in enumerate(source):
        x = left + _CELL * column + 15
        lines.append(f'<text font-size="12" transform="translate({x} {top - 6}) rotate(-90)">{escape(piece)}</text>')
    for row, piece in enumerate(translation):
        y = top + _CELL * row
        lines.append(f'<text x="{left - 6}" y="{y + 15}" font-size="12" text-anchor="end">{escape(piece)}</text>')
        for column, share in enumerate(shares[row]):
            red, green, blue = (round(255 - (255 - full) * float(share)) for full in (20, 50, 120))
            lines.append(
                f'<rect x="{left + _CELL * column}" y="{y}" width="{_CELL}" height="{_CELL}" '
                f'fill="rgb({red},{green},{blue})" stroke="#ddd"/>'
            )
    return "\n".join([*lines, "</svg>", ""])
