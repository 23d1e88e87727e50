"""Four kinds of text in one vocabulary: the Brown corpus, Jane Austen, the World English Bible, and Linux's documents.

A word is a run of letters (with apostrophes inside), in lower case; any number is the word ``0``; ``. , ; : ! ? " ( )``
are words; what else there is, is dropped. Of each kind the first `LENGTH` words at most are kept. `BLOCK` words are a
block; of each twenty blocks the first is of the test part, the second of the validation part, the rest of the training
part. A row is a word and the `CONTEXT` words before it, of its part whatever those are of.

``words.txt`` holds the vocabulary, one word a line: ``<unk>``, then the most frequent words of the training parts by
falling frequency, alphabetically where equal. ``test.npz`` and ``calibration.npz`` hold rows of the test and the
validation part, equally many of each kind: ``ngram`` uint16 (n, CONTEXT + 1) and ``kind`` uint8 (n,).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dlc.errors import DlcError
from dlc.zoo.moe import texts

PACKAGES = texts.PACKAGES
KINDS = tuple(texts.READERS)
TITLES = {"brown": "Brown corpus", "austen": "Jane Austen", "bible": "World English Bible", "linux": "Linux documents"}

#: The input's name and the words before the one asked for.
INPUT = "ngram"
CONTEXT = 8
UNKNOWN = "<unk>"
VOCABULARY = 8_000
LENGTH = 800_000
BLOCK = 1_000

Part = Literal["train", "validation", "test"]
_TWENTIETHS: dict[Part, tuple[int, int]] = {"test": (0, 1), "validation": (1, 2), "train": (2, 20)}
#: Part and rows of each kind of a committed excerpt.
_EXCERPTS: dict[str, tuple[Part, int]] = {"test": ("test", 4_000), "calibration": ("validation", 500)}
_WORD = re.compile(r"""[^\W\d_]+(?:'[^\W\d_]+)*|\d+|[.,;:!?"()]""")


@dataclass(frozen=True)
class Corpus:
    """The texts in numbers.

    Attributes:
        streams: uint16 (n,) by kind.
    """

    streams: Mapping[str, NDArray[np.uint16]]

    def rows(self, part: Part, kind: str) -> NDArray[np.uint16]:
        """The rows of one part of one kind of text in order, (n, CONTEXT + 1)."""
        stream = self.streams[kind]
        return np.lib.stride_tricks.sliding_window_view(stream, CONTEXT + 1)[_places(part, len(stream)) - CONTEXT]


def _places(part: Part, length: int) -> NDArray[np.int64]:
    """Where the words of a part are that have a whole context."""
    places = np.arange(CONTEXT, length)
    low, high = _TWENTIETHS[part]
    twentieth = places // BLOCK % 20
    return places[(low <= twentieth) & (twentieth < high)]


def tokens(text: str) -> list[str]:
    """The words of a text: see the module's text."""
    plain = text.lower().replace("\u2019", "'").replace("“", '"').replace("”", '"')
    return ["0" if word[0].isdigit() else word for word in _WORD.findall(plain)]


def read_tokens(directory: Path | None = None) -> dict[str, list[str]]:
    """The words kept of each kind of text.

    Args:
        directory: see `dlc.zoo.packages.locate`.

    Raises:
        DlcError: a package is missing, or is not what it was.
    """
    return {kind: tokens(read(directory))[:LENGTH] for kind, read in texts.READERS.items()}


def vocabulary(kinds: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The vocabulary of texts: see the module's text."""
    counts = Counter(words[place] for words in kinds.values() for place in _places("train", len(words)).tolist())
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    return (UNKNOWN, *frequent[: VOCABULARY - 1])


def number(words: Sequence[str], known: Sequence[str]) -> NDArray[np.uint16]:
    """The numbers of words, 0 for one that is not known."""
    numbers = {word: place for place, word in enumerate(known)}
    return np.array([numbers.get(word, 0) for word in words], np.uint16)


def load_corpus(directory: Path | None = None) -> Corpus:
    """Read the texts, in the committed vocabulary; see `read_tokens`."""
    return Corpus({kind: number(words, load_words()) for kind, words in read_tokens(directory).items()})


@cache
def load_words() -> tuple[str, ...]:
    """The committed vocabulary."""
    return tuple((Path(__file__).parent / "words.txt").read_text(encoding="utf-8").splitlines())


def load_excerpt(name: str) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """The committed excerpt ``test`` or ``calibration``: rows (n, CONTEXT + 1), and the kind of each, of `KINDS`.

    Raises:
        DlcError: no such excerpt.
    """
    if name not in _EXCERPTS:
        raise DlcError(f"no excerpt {name!r} of the texts (known: {', '.join(_EXCERPTS)})")
    with np.load(Path(__file__).parent / f"{name}.npz") as arrays:
        return arrays[INPUT].astype(np.int64), arrays["kind"]


def choose_excerpt(corpus: Corpus, name: str) -> dict[str, Any]:
    """Choose an excerpt again: the first rows of each kind; the arrays of the ``.npz`` file."""
    part, count = _EXCERPTS[name]
    rows = [corpus.rows(part, kind)[:count] for kind in KINDS]
    kinds = np.repeat(np.arange(len(KINDS), dtype=np.uint8), [len(r) for r in rows])
    return {INPUT: np.concatenate(rows), "kind": kinds}


def write_excerpts(directory: Path | None = None) -> None:
    """Write ``words.txt`` and the excerpts again."""
    folder = Path(__file__).parent
    kinds = read_tokens(directory)
    words = vocabulary(kinds)
    (folder / "words.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    corpus = Corpus({kind: number(found, words) for kind, found in kinds.items()})
    for name in _EXCERPTS:
        np.savez_compressed(folder / f"{name}.npz", **choose_excerpt(corpus, name))


def samples(part: Literal["test", "calibration"]) -> dict[str, NDArray[np.int64]]:
    """The rows of an embedded excerpt by the model's input name."""
    return {INPUT: load_excerpt(part)[0]}
