"""Autoregressive generation: what a model says of the next token is sampled and given back to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dlc.errors import DlcError

if TYPE_CHECKING:
    from dlc.runtime.session import Session, TensorInfo
    from dlc.runtime.stream import Stream


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits.

    Attributes:
        temperature: what the logits are divided by; 0 takes the largest (the first of equals).
        top_k: how many of the largest take part; 0 for all.
        seed: of the random numbers. Each row of a batch has numbers of its own, whatever the other rows are.
    """

    temperature: float = 0.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise DlcError(f"the temperature must be at least 0, got {self.temperature}")
        if self.top_k < 0:
            raise DlcError(f"top_k must be at least 0, got {self.top_k}")

    def choose(self, logits: np.ndarray, generators: Sequence[np.random.Generator]) -> np.ndarray:
        """One token a row of `logits` (rows, classes)."""
        if self.top_k > logits.shape[1]:
            raise DlcError(f"top_k is {self.top_k}, and the model has {logits.shape[1]} classes")
        if self.temperature == 0:
            return np.argmax(logits, axis=1)
        scaled = logits.astype(np.float64) / self.temperature
        if self.top_k:
            least = np.partition(scaled, -self.top_k, axis=1)[:, -self.top_k, None]
            scaled = np.where(scaled >= least, scaled, -np.inf)
        weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        total = np.cumsum(weights, axis=1)
        points = np.array([[generator.random()] for generator in generators]) * total[:, -1:]
        # Rounding may put a point at the very end: then the last class that has any weight is meant.
        last = total.shape[1] - 1 - np.argmax(weights[:, ::-1] > 0, axis=1)
        return np.minimum((total <= points).sum(axis=1), last)


class Model(Protocol):
    """A model under way.

    Attributes:
        longest: how many tokens a sequence may have; None for any number.
    """

    longest: int | None

    def begin(self, prompt: np.ndarray) -> np.ndarray:
        """Logits (rows, classes) behind a prompt of tokens (rows, steps)."""

    def next(self, tokens: np.ndarray) -> np.ndarray:
        """Logits behind one more token a row."""


class StepModel:
    """A model of one step, whose states are inputs and outputs.

    Args:
        session: the model; its input `token` takes one token a row.
        token, logits: names of the input and the output.
        states: output name -> the input that takes it in the next step.
        initial: the states' first values by input name; zeros where not given.

    Raises:
        DlcError: a name is not the model's, or a state's input and output are of different types.
    """

    longest: int | None = None

    def __init__(
        self, session: Session, token: str, logits: str, states: Mapping[str, str], initial: Mapping[str, Any]
    ) -> None:
        self._session, self._token, self._logits, self._states = session, token, logits, dict(states)
        inputs = {info.name: info for info in session.inputs}
        outputs = {info.name: info for info in session.outputs}
        self._shape = _known(inputs, token, "input").shape
        _known(outputs, logits, "output")
        self._kept: dict[str, np.ndarray] = {}
        for output, name in self._states.items():
            given, taken = _known(outputs, output, "output"), _known(inputs, name, "input")
            fixed = zip(given.shape, taken.shape, strict=False)
            if (
                given.dtype != taken.dtype
                or len(given.shape) != len(taken.shape)
                or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in fixed)
            ):
                raise DlcError(f"state '{name}' does not fit: the model takes {taken} and gives {given}")
            if name not in initial and any(not isinstance(d, int) for d in taken.shape):
                raise DlcError(f"state '{name}' has symbolic extents {list(taken.shape)}: give its first value")
            self._kept[name] = np.asarray(
                initial[name] if name in initial else np.zeros([int(d) for d in taken.shape], taken.dtype)
            )

    def begin(self, prompt: np.ndarray) -> np.ndarray:
        """See `Model.begin`: the prompt is taken step by step."""
        for step in range(prompt.shape[1]):
            logits = self.next(prompt[:, step])
        return logits

    def next(self, tokens: np.ndarray) -> np.ndarray:
        """See `Model.next`."""
        dtype = next(info.dtype for info in self._session.inputs if info.name == self._token)
        given = tokens.astype(dtype).reshape(tokens.shape[0], *[1] * (len(self._shape) - 1))
        results = self._session.run({self._token: given, **self._kept})
        self._kept = {name: results[output] for output, name in self._states.items()}
        array = results[self._logits]
        return np.asarray(array).reshape(-1, array.shape[-1])


class StreamModel:
    """A sequence model in its streaming form, with tokens (rows, time) or one-hot floats in its only input.

    A model of a fixed number of rows takes more of them as several streams, one after the other in each step.
    """

    def __init__(self, session: Session, logits: str | None) -> None:
        self._session, self._streams = session, [session.stream()]
        inputs = self._streams[0].inputs
        if len(inputs) != 1:
            names = ", ".join(info.name for info in inputs)
            raise DlcError(f"only a model of one input generates from its own output; this one has {names}")
        (self._input,) = inputs
        outputs = {info.name: info for info in self._streams[0].outputs}
        self._logits = _known(outputs, logits if logits is not None else next(iter(outputs)), "output").name
        axes = session.package.manifest["stream_axes"]
        self._in, self._out = axes[self._input.name], axes.get(self._logits)
        if self._out is None:
            raise DlcError(f"output '{self._logits}' has no value for each step")
        self._hot = np.dtype(self._input.dtype).kind == "f"
        self.longest: int | None = session.package.manifest["stream_length"]

    def begin(self, prompt: np.ndarray) -> np.ndarray:
        """See `Model.begin`: the prompt is one part of the sequence."""
        rows = self._input.shape[0 if self._hot else 1 - self._in]
        count = 1 if not isinstance(rows, int) else prompt.shape[0] // rows
        if isinstance(rows, int) and (count * rows != prompt.shape[0] or not count):
            raise DlcError(f"the model takes {rows} rows at once, and the prompt has {prompt.shape[0]}")
        self._streams += [self._session.stream() for _ in range(count - 1)]
        return self._run(prompt)

    def next(self, tokens: np.ndarray) -> np.ndarray:
        """See `Model.next`."""
        return self._run(tokens[:, None])

    def _run(self, tokens: np.ndarray) -> np.ndarray:
        parts = np.split(tokens, len(self._streams))
        return np.concatenate([self._scores(*pair) for pair in zip(self._streams, parts, strict=True)])

    def _scores(self, stream: Stream, tokens: np.ndarray) -> np.ndarray:
        assert self._out is not None
        array = stream.run({self._input.name: self._encoded(tokens)})[self._logits]
        rows = np.moveaxis(array, self._out, 0)[-1]  # the other axes keep their order: rows, then classes
        return np.asarray(rows.reshape(-1, rows.shape[-1]))

    def _encoded(self, tokens: np.ndarray) -> np.ndarray:
        if not self._hot:
            return np.ascontiguousarray(np.moveaxis(tokens.astype(self._input.dtype), 1, self._in))
        (classes,) = [d for a, d in enumerate(self._input.shape) if a not in (0, self._in)]
        if not isinstance(classes, int) or tokens.max() >= classes:
            raise DlcError(f"token {tokens.max()} is beyond the classes of input {self._input}")
        hot = np.eye(classes, dtype=self._input.dtype)[tokens]  # rows, time, classes
        return np.ascontiguousarray(np.moveaxis(hot, 1, self._in))


def _known(infos: Mapping[str, TensorInfo], name: str, role: str) -> TensorInfo:
    if name not in infos:
        raise DlcError(f"the model has no {role} '{name}'; it has {', '.join(infos) or 'none'}")
    return infos[name]


def generate(model: Model, prompt: Any, steps: int, sampling: Sampling, streams: int = 1) -> np.ndarray:
    """Tokens (rows * streams, steps), int64, that follow the tokens of `prompt` (rows, at least one step)."""
    tokens = np.asarray(prompt)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or tokens.shape[1] < 1:
        raise DlcError(f"the prompt must be integers (rows, steps), got {tokens.dtype}{list(tokens.shape)}")
    for name, count in (("steps", steps), ("streams", streams)):
        if count < 1:
            raise DlcError(f"{name} must be at least 1, got {count}")
    total = tokens.shape[1] + steps - 1  # the last token is not given back
    if model.longest is not None and total > model.longest:
        text = f"{tokens.shape[1]} tokens of the prompt and {steps} steps are too many"
        raise DlcError(f"{text}: the model was compiled for sequences of {model.longest} (max_length)")
    tokens = np.repeat(tokens, streams, axis=0)
    generators = [np.random.default_rng([sampling.seed, row]) for row in range(tokens.shape[0])]
    logits = model.begin(tokens)
    found = [sampling.choose(logits, generators)]
    while len(found) < steps:
        found.append(sampling.choose(model.next(found[-1]), generators))
    return np.stack(found, axis=1).astype(np.int64)
