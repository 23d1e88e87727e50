"""Which expert takes which kind of text, as an SVG picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

_CELL, _ROW, _LEFT, _TOP = 52, 44, 170, 56
_DARK = np.array([31, 78, 156])


def draw(load: NDArray[np.int64], titles: Sequence[str]) -> str:
    """A table of shares, (kinds, experts): of the words of a kind, how many go to each expert, in per cent.

    Experts are in the order of the kind that they take the greatest share of.
    """
    share = load / load.sum(1, keepdims=True)
    order = np.lexsort((-share.max(0), share.argmax(0)))
    width, height = _LEFT + _CELL * len(order) + 20, _TOP + _ROW * (len(titles) + 1) + 24
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">expert</text>',
    ]
    rows = [*zip(titles, share, strict=True), ("all", load.sum(0) / load.sum())]
    for column, expert in enumerate(order):
        lines.append(_text(_LEFT + (column + 0.5) * _CELL, _TOP - 12, str(expert), "middle"))
    for place, (title, shares) in enumerate(rows):
        y = _TOP + place * _ROW + (12 if title == "all" else 0)
        lines.append(_text(_LEFT - 12, y + _ROW / 2 + 5, title, "end"))
        for column, expert in enumerate(order):
            strength = min(1.0, shares[expert] / share.max())
            colour = "#{:02x}{:02x}{:02x}".format(*(255 - strength * (255 - _DARK)).round().astype(int))
            x = _LEFT + column * _CELL
            lines.append(f'<rect x="{x}" y="{y}" width="{_CELL - 2}" height="{_ROW - 2}" fill="{colour}"/>')
            ink = "white" if strength > 0.5 else "#333333"
            lines.append(_text(x + _CELL / 2 - 1, y + _ROW / 2 + 4, f"{shares[expert]:.1%}", "middle", ink, 11))
    return "\n".join([*lines, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str, ink: str = "#333333", size: int = 14) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}" fill="{ink}">{escape(text)}</text>'
