"""ARPA files, the common format of back-off n-gram models: SRILM, KenLM and other tools read and write them.

A section lists, for each n-gram of one order, log10 P, the words and, below the highest order, log10 of the back-off
weight. -99 stands for a probability of 0, a missing weight for 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dlc.errors import DlcError
from dlc.runtime.files import atomic_write
from dlc.zoo.ngram.counts import Ints, Level
from dlc.zoo.ngram.model import Floats, NgramModel

_ZERO = -99.0  # at or below it, log10 of nothing
#: Marks of where a sentence begins and ends.
MARKS = ("<s>", "</s>")


def write_arpa(path: Path, model: NgramModel, words: Sequence[str]) -> None:
    """Write a model as an ARPA file, with digits enough to give float32 back.

    A model of running text has no marks of sentences; they are added with probability 0, since KenLM asks for them.

    Args:
        path: the file.
        model: the model.
        words: its vocabulary, by number.

    Raises:
        DlcError: the file cannot be written.
    """
    with atomic_write(path) as file:
        for line in _lines(model, words):
            file.write(f"{line}\n".encode())


def _lines(model: NgramModel, words: Sequence[str]) -> Iterator[str]:
    added = [mark for mark in MARKS if mark not in words]
    yield "\\data\\"
    for order, log10 in enumerate(model.log10, 1):
        yield f"ngram {order}={len(log10) + (len(added) if order == 1 else 0)}"
    texts = list(words)
    for order, log10 in enumerate(model.log10, 1):
        if order > 1:
            level = model.levels[order - 2]
            texts = [
                f"{texts[parent]} {words[word]}"
                for parent, word in zip(level.parent.tolist(), level.word.tolist(), strict=True)
            ]
        yield ""
        yield f"\\{order}-grams:"
        shown = np.maximum(log10, _ZERO).tolist()
        if order < model.order:
            weights = model.backoff[order - 1].tolist()
            yield from (f"{p:.9g}\t{text}\t{b:.9g}" for p, text, b in zip(shown, texts, weights, strict=True))
        else:
            yield from (f"{p:.9g}\t{text}" for p, text in zip(shown, texts, strict=True))
        if order == 1:
            yield from (f"{_ZERO:g}\t{mark}\t0" if model.order > 1 else f"{_ZERO:g}\t{mark}" for mark in added)
    yield ""
    yield "\\end\\"


def read_arpa(path: Path, words: Sequence[str] | None = None) -> tuple[NgramModel, tuple[str, ...]]:
    """Read an ARPA file.

    Args:
        path: the file.
        words: the numbering of words wanted; by default the order of the 1-grams in the file. Marks of sentences that
            are not among them are left out.

    Returns:
        The model and its vocabulary.

    Raises:
        DlcError: the file cannot be read, is no ARPA file, or lists an n-gram without the shorter one that it begins
            with, or its 1-grams are not the words wanted.
    """
    try:
        lines = iter(enumerate(path.read_text(encoding="utf-8").splitlines(), 1))
        sizes = _sizes(path, lines)
        found: tuple[str, ...] = ()
        levels: list[Level] = []
        probabilities: list[Floats] = []
        weights: list[Floats] = []
        for order, size in enumerate(sizes, 1):
            log10, grams, backoff = _section(path, lines, order, size)
            if order == 1:
                found = tuple(gram[0] for gram in grams) if words is None else tuple(words)
                numbers = {word: number for number, word in enumerate(found)}
                kept = [gram[0] in numbers or gram[0] not in MARKS for gram in grams]
                log10, backoff, grams = (
                    log10[kept],
                    backoff[kept],
                    [g for g, keep in zip(grams, kept, strict=True) if keep],
                )
                if len(numbers) != len(grams):
                    raise DlcError(f"{path}: {len(grams)} 1-grams, where {len(numbers)} different words were expected")
            rows = np.array([[numbers[word] for word in gram] for gram in grams], np.int64).reshape(-1, order)
            place = np.argsort(rows[:, 0]) if order == 1 else _add_level(path, levels, rows, len(found))
            probabilities.append(np.where(log10 <= _ZERO, -np.inf, log10)[place])
            if order < len(sizes):
                weights.append(backoff[place])
    except (OSError, ValueError) as error:
        raise DlcError(f"{path} is not an ARPA file: {error}") from error
    except KeyError as error:
        raise DlcError(f"{path}: {error} is in an n-gram and not among the words expected") from error
    return NgramModel(tuple(levels), tuple(probabilities), tuple(weights)), found


def _sizes(path: Path, lines: Iterator[tuple[int, str]]) -> list[int]:
    """The numbers of n-grams that the head announces, up to the line before the 1-grams."""
    for _, line in lines:
        if line.strip() == "\\data\\":
            break
    sizes = []
    for _, line in lines:
        if line.startswith("ngram "):
            sizes.append(int(line.partition("=")[2]))
        elif sizes:
            return sizes
    raise DlcError(f"{path} is not an ARPA file: it has no \\data\\ section with the numbers of n-grams")


def _section(
    path: Path, lines: Iterator[tuple[int, str]], order: int, size: int
) -> tuple[Floats, list[list[str]], Floats]:
    """The log10 probabilities, words and log10 back-off weights of one section."""
    for number, line in lines:
        if line.strip():
            if line.strip() != f"\\{order}-grams:":
                raise DlcError(f"{path}, line {number}: expected \\{order}-grams:, found '{line[:40]}'")
            break
    log10, backoff = np.zeros(size), np.zeros(size)
    grams: list[list[str]] = []
    for index in range(size):
        number, line = next(lines, (0, ""))
        if not number:
            raise DlcError(f"{path} is cut off: it announces {size} {order}-grams and ends behind {index} of them")
        fields = line.split()
        if len(fields) not in (order + 1, order + 2):
            raise DlcError(f"{path}, line {number}: expected a {order}-gram with its figures, found '{line[:40]}'")
        log10[index] = float(fields[0])
        grams.append(fields[1 : order + 1])
        if len(fields) == order + 2:
            backoff[index] = float(fields[-1])
    return log10, grams, backoff


def _add_level(path: Path, levels: list[Level], rows: Ints, vocabulary: int) -> Ints:
    """Append the level of these n-grams; return where each of its entries is among the rows."""

    def walk(words: Ints) -> Ints:
        at = words[:, 0]
        for level, word in zip(levels, words.T[1:], strict=True):
            at = level.find(at, word, vocabulary)
        return at

    parent, suffix = walk(rows[:, :-1]), walk(rows[:, 1:])
    if len(rows) and parent.min() < 0:
        raise DlcError(f"{path}: a {rows.shape[1]}-gram is listed, but not the {rows.shape[1] - 1}-gram it begins with")
    place = np.argsort(parent * vocabulary + rows[:, -1], kind="stable")
    unknown = np.zeros(len(rows), np.int64)  # a file of probabilities does not tell counts
    levels.append(Level(parent[place], rows[place, -1], suffix[place], unknown))
    return place
