"""Texts through a model and back, a sentence a call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlc.errors import DlcError
from dlc.zoo.models import Model
from dlc.zoo.nmt import data, graphs


@dataclass(frozen=True)
class Translation:
    """What a model made of a text.

    Attributes:
        text: in French.
        source: the pieces of the English text, EOS included.
        pieces: those of the translation, EOS included unless it was cut off.
        alignment: float32 (pieces, source), where the model looked for each piece; None without attention.
    """

    text: str
    source: list[str]
    pieces: list[str]
    alignment: NDArray[np.float32] | None


def translate(model: Model, english: str) -> Translation:
    """Translate one text.

    Raises:
        DlcError: there is nothing in it, or the model is none of this family.
    """
    source = data.encode(english)
    if len(source) == 1:
        raise DlcError("there is nothing to translate: the text is empty")
    if set(model.inputs) != {data.INPUT}:
        raise DlcError(f"{model.path} has the inputs {', '.join(model.inputs)}, not {data.INPUT}: it is no translator")
    found = model.run({data.INPUT: source[None]})
    tokens = found[graphs.TOKENS][0]
    length = data.length_of(tokens)
    alignment = found[graphs.ALIGNMENT][0, :length] if graphs.ALIGNMENT in found else None
    return Translation(data.decode(tokens), data.pieces(source), data.pieces(tokens[:length]), alignment)


def translate_all(model: Model, english: Iterable[str]) -> list[str]:
    """Translate texts, one after the other."""
    return [translate(model, text).text for text in english]
