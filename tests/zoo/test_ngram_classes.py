"""Word categories: the exchange algorithm against recounting, the class model, the mixture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dlc.zoo.ngram import classes
from dlc.zoo.ngram.counts import count
from dlc.zoo.ngram.model import perplexity
from dlc.zoo.ngram.smoothing import kneser_ney
from tests.zoo.ngrams import random_texts


def planted(seed: int = 0, length: int = 6000) -> np.ndarray:
    """A stream over 24 words of 4 categories (word modulo 4), in which only the categories depend on each other."""
    rng = np.random.default_rng(seed)
    follows = np.array(
        [[0.05, 0.85, 0.05, 0.05], [0.05, 0.05, 0.85, 0.05], [0.05, 0.05, 0.05, 0.85], [0.7, 0.1, 0.1, 0.1]]
    )
    ids, category = [], 0
    for _ in range(length):
        category = int(rng.choice(4, p=follows[category]))
        ids.append(category + 4 * int(rng.integers(6)))
    return np.array(ids)


def likelihood(ids: np.ndarray, category: np.ndarray) -> float:
    """The likelihood by counting anew, in nats a bigram, up to the words' own."""
    pairs = np.zeros((category.max() + 1,) * 2)
    np.add.at(pairs, (category[ids[:-1]], category[ids[1:]]), 1)
    terms = [np.where(n > 0, n * np.log(np.maximum(n, 1)), 0).sum() for n in (pairs, pairs.sum(1), pairs.sum(0))]
    return (terms[0] - terms[1] - terms[2]) / pairs.sum()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_word_goes_where_recounting_says(seed: int) -> None:
    ids = np.array(random_texts(seed, 9, 1, 200)[0])
    state = classes._Exchange(count([ids], 9, 2), 3)
    for word in state.order * 2:
        tried = []
        for place in range(3):
            category = state.category.copy()
            category[word] = place
            tried.append(likelihood(ids, np.append(category, 2)))  # the last entry only sets the number of categories
        state.improve(word)
        assert tried[state.category[word]] == pytest.approx(max(tried), abs=1e-12)
        assert state.likelihood() == pytest.approx(max(tried), abs=1e-12)
    again = classes._Exchange(count([ids], 9, 2), 3)
    again.assign(state.category)
    for name in ("table", "left", "right"):
        np.testing.assert_array_equal(getattr(again, name), getattr(state, name))


def test_planted_categories_are_found() -> None:
    likelihoods: list[float] = []
    # The words are renumbered, or the start would be the answer.
    shuffled = np.random.default_rng(1).permutation(24)
    category, seconds = classes.exchange(
        count([shuffled[planted()]], 24, 2), 4, 20, on_pass=lambda n, moved, value: likelihoods.append(value)
    )
    assert likelihoods == sorted(likelihoods) and seconds > 0
    groups = {frozenset(np.flatnonzero(category[shuffled] == k).tolist()) for k in range(4)}
    assert groups == {frozenset(range(k, 24, 4)) for k in range(4)}


def test_interrupted_learning_goes_on(tmp_path: Path) -> None:
    counts = count([np.array(random_texts(3, 40, 1, 1500)[0])], 40, 2)
    passes: list[tuple[int, int]] = []
    whole, _ = classes.exchange(counts, 6, 20, on_pass=lambda n, moved, value: passes.append((n, moved)))
    assert passes[-1][1] == 0 and len(passes) > 2  # it ended because nothing moved

    def interrupt(number: int, moved: int, value: float) -> None:
        if number == 2:
            raise KeyboardInterrupt

    path = tmp_path / "new" / "c.npz"
    with pytest.raises(KeyboardInterrupt):
        classes.exchange(counts, 6, 20, checkpoint=path, on_pass=interrupt)
    seen: list[tuple[int, int]] = []
    resumed, _ = classes.exchange(
        counts, 6, 20, checkpoint=path, on_pass=lambda n, moved, value: seen.append((n, moved))
    )
    assert seen == passes[2:]
    np.testing.assert_array_equal(resumed, whole)
    again, _ = classes.exchange(counts, 6, 20, checkpoint=path, on_pass=interrupt)  # complete: no pass is made
    np.testing.assert_array_equal(again, whole)


def test_class_model_is_a_distribution() -> None:
    ids = planted()
    model = classes.class_model(ids, np.arange(24) % 4, 2)
    for context in (0, 5):
        share = [10 ** model.score_stream(np.array([context, word]))[1] for word in range(24)]
        assert sum(share) == pytest.approx(1)


def test_categories_help_where_words_are_rare() -> None:
    train, held_out, test = planted(0, 600), planted(1, 600), planted(2, 600)
    counts = count([train], 24, 2)
    word = kneser_ney(counts)
    model = classes.class_model(train, classes.exchange(counts, 4, 20)[0], 2)
    weight = classes.mixture_weight(word.score_stream(held_out), model.score_stream(held_out))
    mixed = classes.mix(word.score_stream(test), model.score_stream(test), weight)
    assert perplexity(mixed) < perplexity(word.score_stream(test))


def test_mixture_weight_is_the_best() -> None:
    rng = np.random.default_rng(0)
    first, second = np.log10(rng.uniform(0.01, 1, (2, 500)))
    weight = classes.mixture_weight(first, second, 500)
    values = [perplexity(classes.mix(first, second, w)) for w in np.linspace(0.01, 0.99, 99)]
    assert perplexity(classes.mix(first, second, weight)) <= min(values) + 1e-6
