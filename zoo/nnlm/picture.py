"""Word embeddings to look at: nearest neighbours, and the plane of two principal components as an SVG picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.floating]

#: Words by what they have in common; a group has one colour in the picture.
GROUPS = {
    "days and months": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday January March April June July",
    "numbers": "two three four five six seven eight nine ten twenty hundred thousand",
    "first names": "John George William James Robert Charles Henry Thomas David Mary",
    "countries": "France England Germany Russia China Japan Italy Cuba India",
    "verbs of motion": "went came walked ran turned moved drove stood sat",
    "modal verbs": "can could may might will would shall should must",
    "people": "man woman boy girl father mother child wife husband",
    "sizes": "small large big great little huge tiny",
    "prepositions": "in on at by from with through under between",
}
_COLOURS = ("#1f4e9c", "#b03a2e", "#1e8449", "#7d3c98", "#b9770e", "#117a8b", "#444444", "#c2185b", "#6b8e23")
_WIDTH, _HEIGHT, _MARGIN = 1000, 760, 60


def neighbours(vectors: Vectors, words: Sequence[str], word: str, number: int = 8) -> list[str]:
    """The words whose embeddings have the greatest cosine with that of `word`, the nearest first."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    place = words.index(word)
    nearest = np.argsort(-(unit @ unit[place]), kind="stable")
    return [words[other] for other in nearest if other != place][:number]


def principal_components(vectors: Vectors) -> Vectors:
    """(n, 2): the rows in the plane where they vary most; each axis points where its largest coordinate is positive."""
    centred = vectors - vectors.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    points = centred @ axes.T
    return np.asarray(points * np.sign(points[np.abs(points).argmax(0), [0, 1]]))


def draw(vectors: Vectors, words: Sequence[str]) -> str:
    """An SVG of the words of `GROUPS` that the vocabulary has, each written where its embedding lies in the plane."""
    chosen = [(word, colour) for group, colour in zip(GROUPS.values(), _COLOURS, strict=True) for word in group.split()]
    known = {word: number for number, word in enumerate(words)}
    chosen = [(word, colour) for word, colour in chosen if word in known]
    rows = vectors[[known[word] for word, _ in chosen]]
    points = principal_components(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    low, high = points.min(0), points.max(0)
    inside = np.array([_WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN - 30])
    places = _MARGIN + (points - low) / np.maximum(high - low, 1e-9) * inside
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    lines += [
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="13" text-anchor="middle" fill="{colour}">{escape(word)}</text>'
        for (word, colour), (x, y) in zip(chosen, places, strict=True)
    ]
    for place, (group, colour) in enumerate(zip(GROUPS, _COLOURS, strict=True)):
        x = 10 + place * (_WIDTH - 20) // len(GROUPS)
        lines.append(f'<text x="{x}" y="{_HEIGHT - 12}" font-size="12" fill="{colour}">{escape(group)}</text>')
    return "\n".join([*lines, "</svg>", ""])
