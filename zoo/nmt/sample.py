"""Translations to read, and where the model looked for each piece as a picture."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dlc.errors import DlcError
from dlc.runtime.files import atomic_write
from dlc.zoo.family import SampleOptions
from dlc.zoo.models import Model
from dlc.zoo.nmt import data, picture, translate


def sample(model: Model, options: SampleOptions) -> Iterator[str]:
    """Yield the translation of the prompt, or of embedded test sentences drawn at random, a line each.

    Where a file is given, it becomes an SVG of what the model looked at in the last of them.

    Raises:
        DlcError: a file is given, and the model has no attention.
    """
    pairs = [data.Pair(options.prompt, "")]
    if not options.prompt:
        excerpt = data.load_excerpt()
        drawn = np.random.default_rng(options.seed).choice(len(excerpt), min(options.count, len(excerpt)), False)
        pairs = [excerpt[place] for place in drawn]
    for pair in pairs:
        found = translate.translate(model, pair.english)
        reference = f" (reference: {pair.french})" if pair.french else ""
        yield f"{pair.english} -> {found.text}{reference}"
    if options.out is not None:
        if found.alignment is None:
            raise DlcError(f"{model.path} has no attention, so there is nothing to draw: leave out --out")
        with atomic_write(options.out) as file:
            file.write(picture.draw(found.source, found.pieces, found.alignment).encode())
        yield f"wrote {options.out}"
