"""The help of LibreOffice in English and in French as pairs of paragraphs, their subwords, and our excerpts.

Debian's packages ``libreoffice-help-en-us`` and ``libreoffice-help-fr`` (MPL-2.0) hold the same HTML pages, and a
paragraph has the same ``id`` in both. Code, and what is the same in both languages, is left out. A paragraph of more
than 40 words is taken sentence by sentence where both languages have equally many; what is longer still is left out, as
are pairs of which one side is more than three times as long. A pair belongs to the test part where
the CRC-32 of its English letters, in lower case, is 0 or 1 modulo 25, to the validation part where it is 2, else to the
training part; so English texts that differ in nothing but digits, marks and case lie in one part.

``pieces.model`` is a sentencepiece model (Kudo and Richardson 2018, arXiv:1808.06226) of both languages together, made
from the training part by `make_pieces`. ``test.npz`` holds 400 pairs of the test part: ``english`` and ``french`` (n,).
Beside them, and alone in ``calibration.npz``, lie 64 English texts of 16 pieces each, of the test and of the training
part: ``source``, int64 (64, 16).
"""

from __future__ import annotations

import functools
import io
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dlc.errors import DlcError
from dlc.zoo.packages import DataPackage, locate

INPUT = "source"
VOCABULARY = 2800
PAD, BOS, EOS = 0, 1, 2
LIMIT = 96  # pieces of a translation at most, EOS included
WORDS = 40  # of a paragraph at most

_PAGES = ("scalc/main0000.html", "swriter/main0000.html", "shared/main0400.html")
PACKAGES = (
    DataPackage("debian", "libreoffice-help-en-us", "usr/share/libreoffice/help/en-US/text", _PAGES),
    DataPackage("debian", "libreoffice-help-fr", "usr/share/libreoffice/help/fr/text", _PAGES),
)

Part = Literal["train", "validation", "test"]
_END = re.compile(r"(?<=[.!?]) (?=[A-ZÀÉÊ])")  # of a sentence
_EXCERPT, _SEED = 400, 1409  # pairs of the embedded test set, and the seed of their choice
_FITTING, _PIECES = 64, 16  # sentences of one length in each excerpt, and their pieces


@dataclass(frozen=True)
class Pair:
    """A paragraph, or a sentence of one, in both languages."""

    english: str
    french: str


class _Paragraphs(HTMLParser):
    """Collects the text of paragraphs and headings by their id."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: dict[str, str] = {}
        self._tag = self._id = ""
        self._parts: list[str] = []
        self._hidden = 0  # depth of spans inside one that this platform does not show

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a paragraph, or what is hidden in one."""
        given = dict(attrs)
        kind = given.get("class") or ""
        if tag in ("p", "h1", "h2", "h3", "h4", "h5", "h6") and given.get("id"):
            self._tag, self._id, self._parts, self._hidden = tag, given["id"] or "", [], 0
            if "code" in kind:
                self._id = ""
        elif tag == "span" and (self._hidden or ("hidden" in given and kind)):  # has another text for MAC, CALC, ...
            self._hidden += 1
        elif tag in ("br", "img"):
            self._parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        """End it."""
        if tag == "span" and self._hidden:
            self._hidden -= 1
        elif self._id and tag == self._tag:
            self.found.setdefault(self._id, clean("".join(self._parts)))
            self._id = ""

    def handle_data(self, data: str) -> None:
        """Keep the text of a paragraph."""
        if self._id and not self._hidden:
            self._parts.append(data)


def clean(text: str) -> str:
    """The text as the model reads and writes it: NFC, single spaces, straight apostrophes."""
    return " ".join(unicodedata.normalize("NFC", text).replace("\u2019", "'").split())


def read_page(text: str) -> dict[str, str]:
    """The paragraphs of a page of the help by id, without code and what is for other platforms."""
    parser = _Paragraphs()
    parser.feed(text)
    return parser.found


def part_of(english: str) -> Part:
    """The part that a sentence belongs to."""
    letters = "".join(c for c in english.lower() if c.isalpha())
    parts: dict[int, Part] = {0: "test", 1: "test", 2: "validation"}
    return parts.get(zlib.crc32(letters.encode()) % 25, "train")


def _split(pair: Pair) -> list[Pair]:
    """The sentences of what is too long, if they correspond; else the pair as it is."""
    sides = [_END.split(side) for side in (pair.english, pair.french)]
    if _longest(pair) <= WORDS or len(sides[0]) != len(sides[1]):
        return [pair]
    return [Pair(*both) for both in zip(*sides, strict=True)]


def _longest(pair: Pair) -> int:
    return max(len(pair.english.split()), len(pair.french.split()))


def usable(pair: Pair) -> bool:
    """Whether a pair is a translation of at most `WORDS` words, by its looks."""
    a, b = len(pair.english), len(pair.french)
    return pair.english != pair.french and _longest(pair) <= WORDS and max(a, b) <= 3 * min(a, b)


@functools.cache
def load_pairs(directory: Path | None = None) -> dict[Part, list[Pair]]:
    """The pairs of each part, in the order of the pages; an English text comes once, as it was translated first.

    Raises:
        DlcError: the packages are missing.
    """
    english, french = (locate(package, "nmt", directory and directory / package.name) for package in PACKAGES)
    found: dict[str, Pair] = {}
    for page in sorted(english.rglob("*.html")):
        other = french / page.relative_to(english)
        if other.is_file():
            ours, theirs = (read_page(path.read_text(encoding="utf-8")) for path in (page, other))
            for key in (key for key in ours if key in theirs):
                for pair in _split(Pair(ours[key], theirs[key])):
                    found.setdefault(pair.english, pair)
    parts: dict[Part, list[Pair]] = {"train": [], "validation": [], "test": []}
    for pair in filter(usable, found.values()):
        parts[part_of(pair.english)].append(pair)
    return parts


# --- subwords


@functools.cache
def subwords() -> Any:
    """The committed sentencepiece model, a ``SentencePieceProcessor``.

    Raises:
        DlcError: sentencepiece is not installed.
    """
    return _sentencepiece().SentencePieceProcessor(model_file=str(Path(__file__).with_name("pieces.model")))


def _sentencepiece() -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise DlcError("subwords need sentencepiece: pip install 'dlc[zoo]'") from None
    return sentencepiece


def make_pieces(sentences: Iterable[str]) -> bytes:
    """Make the sentencepiece model again: `VOCABULARY` pieces of both languages' training part, by byte-pair encoding.

    Raises:
        DlcError: sentencepiece is not installed.
    """
    model = io.BytesIO()
    _sentencepiece().SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=VOCABULARY, model_type="bpe",
        character_coverage=0.99995, normalization_rule_name="identity", num_threads=1, minloglevel=2,
        pad_id=PAD, bos_id=BOS, eos_id=EOS, unk_id=3,
    )  # fmt: skip
    return model.getvalue()


def encode(text: str) -> NDArray[np.int64]:
    """The pieces of a text and EOS, (S,)."""
    return np.array([*subwords().encode(clean(text)), EOS], np.int64)


def decode(tokens: Sequence[int] | NDArray[np.integer]) -> str:
    """The text of pieces up to the first EOS."""
    known = [int(token) for token in tokens]
    return str(subwords().decode(known[: known.index(EOS)] if EOS in known else known))


def length_of(tokens: NDArray[np.integer]) -> int:
    """The pieces of a translation (T,), with its EOS where it has one."""
    return min(int((tokens != EOS).sum()) + 1, len(tokens))


def pieces(tokens: NDArray[np.integer]) -> list[str]:
    """Pieces to read, a space shown as ▁."""
    return [str(subwords().id_to_piece(int(token))) for token in tokens]


# --- the excerpts


def load_excerpt() -> list[Pair]:
    """The embedded pairs of the test part."""
    with np.load(Path(__file__).with_name("test.npz")) as arrays:
        return [Pair(str(e), str(f)) for e, f in zip(arrays["english"], arrays["french"], strict=True)]


def choose_excerpt(name: Literal["calibration", "test"], directory: Path | None = None) -> dict[str, np.ndarray]:
    """Choose an excerpt again by a seeded draw: the arrays of the ``.npz`` file."""
    pairs = load_pairs(directory)["test" if name == "test" else "train"]
    order = np.random.default_rng(_SEED).permutation(len(pairs))
    drawn = [pairs[place] for place in order]
    fitting = [row for row in (encode(pair.english) for pair in drawn) if len(row) == _PIECES][:_FITTING]
    arrays = {INPUT: np.stack(fitting)}
    if name == "test":
        arrays["english"] = np.array([pair.english for pair in drawn[:_EXCERPT]])
        arrays["french"] = np.array([pair.french for pair in drawn[:_EXCERPT]])
    return arrays


def samples(part: Literal["calibration", "test"]) -> dict[str, NDArray[np.int64]]:
    """The model's input for the embedded texts of 16 pieces, int64 (64, 16), by its name."""
    with np.load(Path(__file__).with_name(f"{part}.npz")) as arrays:
        return {INPUT: np.asarray(arrays[INPUT], np.int64)}
