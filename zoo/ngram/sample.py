"""Text from the n-gram model: each word is drawn from its distribution given the two before it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dlc.errors import DlcError
from dlc.zoo.family import SampleOptions
from dlc.zoo.models import Model, run_in_batches
from dlc.zoo.ngram import data

_BATCH = 4096
_LONGEST = 40  # words
_ENDS = (".", "?", "!")
_NO_SPACE_BEFORE = (*",.;:?!)", "''")
_NO_SPACE_AFTER = ("(", "``")


def sample(model: Model, options: SampleOptions) -> Iterator[str]:
    """Yield sentences. The prompt's words are divided by spaces; without one a sentence starts as behind a full stop.

    Raises:
        DlcError: the model is not of this vocabulary, or a word of the prompt is not in it.
    """
    words = data.load_words()
    (order,) = {shape[1] for shape in model.inputs.values()}
    if not isinstance(order, int) or order < 2:
        raise DlcError("sampling needs a model of order 2 or more")
    numbers = {word: number for number, word in enumerate(words)}
    prompt = options.prompt.split()
    unknown = [word for word in prompt if word not in numbers]
    if unknown:
        raise DlcError(f"the model does not know {unknown[0]!r}; its {len(words):,} words are in zoo/ngram/words.txt")
    generator = np.random.default_rng(options.seed)
    rows = np.empty((len(words), order), np.int64)
    rows[:, -1] = np.arange(len(words))
    for _ in range(options.count):
        text = [numbers["."]] * (order - 1) + [numbers[word] for word in prompt]
        for _ in range(_LONGEST - len(prompt)):
            rows[:, :-1] = text[1 - order :]
            share = 10.0 ** run_in_batches(model, {data.INPUT: rows}, _BATCH)["log10"].astype(np.float64)
            share[0] = 0  # merged rare words have no spelling
            text.append(int(generator.choice(len(words), p=share / share.sum())))
            if words[text[-1]] in _ENDS:
                break
        yield join([words[number] for number in text[order - 1 :]])


def join(words: list[str]) -> str:
    """Words and marks of the corpus as running text."""
    text = ""
    for word in words:
        glued = not text or word in _NO_SPACE_BEFORE or text.endswith(_NO_SPACE_AFTER)
        text += word if glued else f" {word}"
    return text.replace("``", "\u201c").replace("''", "\u201d")
