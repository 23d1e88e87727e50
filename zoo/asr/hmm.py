"""The baseline: whole-word hidden Markov models with mixtures of Gaussians, and a bigram of words.

Rabiner, "A Tutorial on Hidden Markov Models and Selected Applications in Speech Recognition" (1989); Young et al., "The
HTK Book". Every word is a chain of states, more of them the longer it is spelled; between words there may be silence.
The sounds are 13 cepstral coefficients (a cosine transform of the same log-mel frames) with their first and second
differences, normalised over the utterance. hmmlearn re-estimates each word's chain by Baum and Welch from where the
word was last found; the search for the best sequence of words, which is Viterbi's, is here, because hmmlearn's has a
dense matrix of transitions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from hmmlearn.hmm import GMMHMM
from numpy.typing import NDArray

from dlc.errors import DlcError
from dlc.zoo.asr.features import BANDS, STEPS, Frames
from dlc.zoo.ngram.counts import count
from dlc.zoo.ngram.smoothing import kneser_ney

Floats = NDArray[np.float64]
_CEPSTRA = 13
_STATES_A_LETTER, _FEWEST = 1.5, 3
SILENCE = ""
_SILENCE_STATES = 3
#: Components of a state's mixture in each round of the training.
ROUNDS = (1, 2, 4, 8)
_FRAMES_A_COMPONENT = 25  # at least, else a word has fewer components
_ITERATIONS = 2  # of Baum and Welch, a round
_MOST_PIECES = 400  # of a unit, that a round learns from: silence has far more
_PRIOR_FRAMES, _PRIOR_VARIANCE = 5.0, 0.3  # what a variance is drawn to
_FLOOR = 0.02  # of a variance; over an utterance all are 1


def cepstra(frames: Frames) -> Floats:
    """Normalised coefficients with their differences of frames (time, bands): (time, 39)."""
    bands = np.arange(BANDS) + 0.5
    transform = np.cos(np.pi / BANDS * np.outer(bands, np.arange(_CEPSTRA))) * np.sqrt(2 / BANDS)
    static = frames.astype(np.float64) / STEPS @ transform
    first = _slope(static)
    whole = np.concatenate([static, first, _slope(first)], 1)
    return (whole - whole.mean(0)) / np.maximum(whole.std(0), 1e-3)


def _slope(rows: Floats) -> Floats:
    """The regression over two frames to either side (the HTK Book's equation 5.16)."""
    padded = np.pad(rows, ((2, 2), (0, 0)), mode="edge")
    return ((padded[3:-1] - padded[1:-3]) + 2 * (padded[4:] - padded[:-4])) / 10


@dataclass(frozen=True)
class Unit:
    """The chain of a word, or of silence: S states of M components.

    Attributes:
        weights: (S, M).
        means, variances: (S, M, 39).
        stay: (S,) probability of another frame in a state.
    """

    weights: Floats
    means: Floats
    variances: Floats
    stay: Floats

    def log_likelihood(self, x: Floats) -> Floats:
        """log p of frames (T, 39) in each state: (T, S)."""
        states, mixes, width = self.means.shape
        precision = (1 / self.variances).reshape(-1, width)
        means = self.means.reshape(-1, width)
        constant = -0.5 * (width * np.log(2 * np.pi) + (means**2 * precision - np.log(precision)).sum(1))
        with np.errstate(divide="ignore"):
            constant = constant + np.log(self.weights.reshape(-1))
        parts = (constant + x @ (means * precision).T - 0.5 * (x**2) @ precision.T).reshape(-1, states, mixes)
        highest = parts.max(-1, keepdims=True)
        return np.log(np.exp(parts - highest).sum(-1)) + highest[..., 0]


@dataclass(frozen=True)
class Recogniser:
    """Units of the words and of silence, and how words follow one another.

    Attributes:
        units: by word; `SILENCE` is one of them.
        follow: (words + 1, words + 1) log P of a word (column) behind another (row); the last row is of the sentence's
            beginning, the last column of its end. Words in the order of `units`, silence left out.
        weight, penalty: of `follow`, and for each word in nats; chosen on the validation part. The weight is large,
            because the frames of a sound are far from independent, so that the chains are too sure of themselves.
    """

    units: dict[str, Unit]
    follow: Floats
    weight: float = 25.0
    penalty: float = 15.0

    def recognise(self, frames: Frames) -> str:
        """The words of the best path."""
        words = [word for word in self.units if word != SILENCE]
        # Silence keeps no word in mind, so each word has one of its own behind it: (word, its silence) for each word.
        scaled = self.weight * self.follow - self.penalty
        chosen, _ = _search(self.units, words, scaled[:-1, :-1], scaled[-1, :-1], scaled[:-1, -1], cepstra(frames))
        return " ".join(chosen)


def _search(
    units: dict[str, Unit], words: Sequence[str], follow: Floats, first: Floats, last: Floats, x: Floats
) -> tuple[list[str], list[tuple[str, int, int]]]:
    """Viterbi's best path through words that follow one another, with or without silence between, before and behind.

    Args:
        units: see `Recogniser`.
        words: of the network, n; one may occur twice.
        follow: (n, n) score of word j behind word i; -inf where it may not be.
        first, last: (n,) score of the first and the last word.
        x: (T, 39).

    Returns:
        The words, and all (unit, begin, end) in frames.

    Raises:
        DlcError: there are fewer frames than the shortest path has states.
    """
    count = len(words)
    # Unit 0 is silence before the first word; units 1 .. n are the words, n + 1 .. 2 n the silence behind each.
    names = [SILENCE, *words, *[SILENCE] * count]
    sizes = np.array([len(units[name].stay) for name in names])
    begins = np.cumsum(np.append(0, sizes[:-1]))
    ends = begins + sizes - 1
    scores = {name: units[name].log_likelihood(x) for name in dict.fromkeys(names)}
    emission = np.concatenate([scores[name] for name in names], 1)
    stay = np.concatenate([units[name].stay for name in names])
    log_stay, log_move = np.log(stay), np.log(1 - stay)

    def entries(left: Floats) -> tuple[Floats, NDArray[np.int64]]:
        """The best score with which each unit begins, and the unit that it comes from, given the scores at the ends."""
        score, origin = np.full(len(names), -np.inf), np.zeros(len(names), np.int64)
        after = np.maximum(left[1 : count + 1], left[count + 1 :])
        origins = np.where(left[1 : count + 1] >= left[count + 1 :], 1, count + 1) + np.arange(count)
        table = after[:, None] + follow
        best = table.argmax(0)
        inner = table[best, np.arange(count)]
        opening = left[0] + first
        score[1 : count + 1] = np.maximum(inner, opening)
        origin[1 : count + 1] = np.where(inner >= opening, origins[best], 0)
        score[count + 1 :], origin[count + 1 :] = left[1 : count + 1], np.arange(1, count + 1)
        return score, origin

    total, states = x.shape[0], len(stay)
    delta = np.full(states, -np.inf)
    delta[0] = emission[0, 0]
    delta[begins[1 : count + 1]] = first + emission[0, begins[1 : count + 1]]
    came = np.zeros((total, states), np.int8)  # 0 stayed, 1 moved on within the unit, 2 entered the unit
    entered = np.zeros((total, len(names)), np.int64)
    for t in range(1, total):
        moving = delta + log_move
        inside = np.append(-np.inf, moving[:-1])
        score, entered[t] = entries(moving[ends])
        inside[begins] = score
        staying = delta + log_stay
        came[t] = np.where(staying >= inside, 0, 1)
        came[t, begins] *= 2
        delta = np.maximum(staying, inside) + emission[t]
    closing = np.concatenate([[-np.inf], last, last]) + (delta + log_move)[ends]
    unit = int(closing.argmax())
    if not np.isfinite(closing[unit]):
        raise DlcError(f"{total} frames are too few for the words")
    return _trace(names, begins, ends, came, entered, unit)


def _trace(
    names: list[str], begins: NDArray[np.int64], ends: NDArray[np.int64], came: NDArray[np.int8],
    entered: NDArray[np.int64], unit: int,
) -> tuple[list[str], list[tuple[str, int, int]]]:  # fmt: skip
    """Follow the best path back from the last state of its last unit."""
    state, end, found = int(ends[unit]), len(came), []
    for t in range(len(came) - 1, -1, -1):
        step = came[t, state] if t else 2
        if step == 2:
            found.append((names[unit], t, end))
            end = t
            unit = int(entered[t, unit])
            state = int(ends[unit])
        elif step == 1:
            state -= 1
    path = found[::-1]
    return [name for name, _, _ in path if name != SILENCE], path


# --- training


class _Chain(GMMHMM):
    """hmmlearn's model without its clustering, which it does even where nothing is to be initialised."""

    def _init(self, x: Floats, lengths: Sequence[int] | None = None) -> None:
        self.n_features = x.shape[1]
        self._init_covar_priors()
        self._fix_priors_shape()


def train(
    utterances: Sequence[Frames], texts: Sequence[str], report: Callable[[str], None] = lambda line: None
) -> Recogniser:
    """Learn from frames and transcripts alone: utterances are cut evenly at first, then where the words are found."""
    # With priors and two iterations the likelihood may fall, which hmmlearn warns of.
    logging.getLogger("hmmlearn").setLevel(logging.ERROR)
    sentences = [text.split() for text in texts]
    words = sorted({word for sentence in sentences for word in sentence})
    xs = [cepstra(frames) for frames in utterances]
    paths = [_even(sentence, len(x)) for sentence, x in zip(sentences, xs, strict=True)]
    units: dict[str, Unit] = {}
    for number, components in enumerate(ROUNDS):
        report(f"round {number + 1} of {len(ROUNDS)}: up to {components} components")
        pieces: dict[str, list[Floats]] = {name: [] for name in (*words, SILENCE)}
        for x, path in zip(xs, paths, strict=True):
            for name, begin, end in path:
                pieces[name].append(x[begin:end])
        units = {name: _fit(name, found, components, units.get(name)) for name, found in pieces.items()}
        if number + 1 < len(ROUNDS):
            paths = [_align(units, s, x) or path for s, x, path in zip(sentences, xs, paths, strict=True)]
    return Recogniser(units, _bigram(sentences, words))


def states_of(word: str) -> int:
    """How many states the chain of a word has."""
    return max(_FEWEST, round(_STATES_A_LETTER * len(word))) if word != SILENCE else _SILENCE_STATES


def _even(sentence: list[str], frames: int) -> list[tuple[str, int, int]]:
    """A tenth of a second of silence at either end, and the words between in proportion to their states."""
    edges = 10 + (frames - 20) * np.cumsum([0, *map(states_of, sentence)]) / sum(map(states_of, sentence))
    marks = [0, *edges.astype(int).tolist(), frames]
    names = [SILENCE, *sentence, SILENCE]
    return [(name, marks[k], marks[k + 1]) for k, name in enumerate(names)]


def _align(units: dict[str, Unit], sentence: list[str], x: Floats) -> list[tuple[str, int, int]] | None:
    """Where each word of a known sentence is; None where the utterance is too short for its chains."""
    count = len(sentence)
    follow = np.full((count, count), -np.inf)
    follow[np.arange(count - 1), np.arange(1, count)] = 0
    edge = np.full(count, -np.inf)
    first, last = edge.copy(), edge.copy()
    first[0] = last[-1] = 0
    try:
        return _search(units, sentence, follow, first, last, x)[1]
    except DlcError:
        return None


def _fit(name: str, pieces: list[Floats], components: int, old: Unit | None) -> Unit:
    """The chain of a unit from the frames of its occurrences, (T, 39) each."""
    states = states_of(name)
    used = [piece for piece in pieces if len(piece) >= states][:_MOST_PIECES]
    if not used:
        raise DlcError(f"no occurrence of {name!r} is as long as its {states} states")
    frames = np.concatenate(used)
    fewest = 1 if old is None else old.weights.shape[1]
    mixes = int(np.clip(len(frames) // (states * _FRAMES_A_COMPONENT), fewest, components))
    model = _Chain(
        states, mixes, params="tmcw", init_params="", n_iter=_ITERATIONS, tol=-np.inf, implementation="scaling",
        covars_prior=(_PRIOR_FRAMES - 1) / 2 - 1, covars_weight=_PRIOR_FRAMES * _PRIOR_VARIANCE / 2,
    )  # fmt: skip
    start = _even_states(used, states) if old is None else _split(old, mixes)
    model.startprob_ = np.eye(states)[0]
    # hmmlearn has no exits: the last state keeps its probability of staying from the lengths of the pieces.
    model.transmat_ = np.diag(np.append(start.stay[:-1], 1.0)) + np.diag(1 - start.stay[:-1], 1)
    model.weights_, model.means_, model.covars_ = start.weights, start.means, start.variances
    model.fit(frames, [len(piece) for piece in used])
    stay = np.clip(np.diag(model.transmat_), 0.05, 0.97)
    stay[-1] = stay[:-1].mean()
    weights = np.maximum(np.nan_to_num(model.weights_), 1e-4)
    return Unit(weights / weights.sum(1, keepdims=True), model.means_, np.maximum(model.covars_, _FLOOR), stay)


def _even_states(pieces: list[Floats], states: int) -> Unit:
    """One Gaussian a state, from pieces that are cut evenly."""
    parts = [np.array_split(piece, states) for piece in pieces]
    of_state = [np.concatenate([part[k] for part in parts]) for k in range(states)]
    means = np.stack([rows.mean(0) for rows in of_state])[:, None]
    variances = np.stack([rows.var(0) + _FLOOR for rows in of_state])[:, None]
    mean_length = np.mean([len(piece) for piece in pieces]) / states
    return Unit(np.ones((states, 1)), means, variances, np.full(states, np.clip(1 - 1 / mean_length, 0.05, 0.97)))


def _split(unit: Unit, mixes: int) -> Unit:
    """The same chain with more components: the heaviest are parted by 0.2 of their deviations (HTK's way)."""
    weights, means, variances = unit.weights, unit.means, unit.variances
    while weights.shape[1] < mixes:
        rows, heaviest = np.arange(len(weights)), weights.argmax(1)
        half, centre, spread = weights[rows, heaviest] / 2, means[rows, heaviest], variances[rows, heaviest]
        weights, means = weights.copy(), means.copy()
        weights[rows, heaviest], means[rows, heaviest] = half, centre - 0.2 * np.sqrt(spread)
        weights = np.concatenate([weights, half[:, None]], 1)
        means = np.concatenate([means, (centre + 0.2 * np.sqrt(spread))[:, None]], 1)
        variances = np.concatenate([variances, spread[:, None]], 1)
    return Unit(weights, means, variances, unit.stay)


def _bigram(sentences: list[list[str]], words: list[str]) -> Floats:
    """`Recogniser.follow`, by a Kneser-Ney smoothed bigram."""
    number = {word: k for k, word in enumerate(words)}
    start, end, size = len(words), len(words) + 1, len(words) + 2
    rows = [np.array([start, *(number[word] for word in sentence), end]) for sentence in sentences]
    model = kneser_ney(count(rows, size, 2, start))
    nexts = [*range(len(words)), end]
    with np.errstate(divide="ignore"):
        table = [model.score(np.column_stack([np.full(len(nexts), h), nexts])) for h in (*range(len(words)), start)]
    return np.stack(table) * np.log(10)
