"""Synthesised speech as log-mel frames, prepared once and kept in the cache; and our excerpts of it.

Every part draws its own sentences, speakers and noise from one seed; no sentence and no voice of the test part occurs
in another part. A prepared part holds ``frames`` uint8 (all, 40), one utterance behind the other, ``lengths`` (n,) in
frames, ``texts``, ``voices`` and ``snr`` (n,) in dB. ``test.npz`` holds the first utterances of the test part, and
``calibration.npz`` the first of the training part, likewise.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dlc.cache import cache_dir
from dlc.errors import DlcError
from dlc.zoo.asr import features, text, voices
from dlc.zoo.wavenet.data import PACKAGES as PROMPTS

PACKAGES = (*voices.FLITE, *PROMPTS)
INPUT, LENGTHS = "features", "lengths"
PARTS = ("train", "validation", "test")
Part = Literal["train", "validation", "test"]
#: Utterances of each part, and the seed of all that is drawn for it.
_SIZES = {"train": (1900, 2006), "validation": (150, 2013), "test": (400, 1997)}
_EXCERPTS: dict[str, tuple[Part, int]] = {"test": ("test", 100), "calibration": ("train", 16)}
_STEPS = 60  # of the network, that an embedded sample has
_SNR = (5.0, 40.0)  # dB
_PAUSE = (0.05, 0.25)  # seconds before and after the sentence


@dataclass(frozen=True)
class Utterances:
    """Some utterances, n of them.

    Attributes:
        frames: of each, uint8 (time, 40): see `features.log_mel`.
        texts: what is said, words of a-z and blanks.
        voices: who says it: see `voices.Speaker`.
        snr: (n,) signal-to-noise ratio in dB.
    """

    frames: tuple[features.Frames, ...]
    texts: tuple[str, ...]
    voices: tuple[str, ...]
    snr: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def hours(self) -> float:
        """How long they take."""
        return sum(map(len, self.frames)) / features.FRAMES_A_SECOND / 3600


def load_part(part: Part, directory: Path | None = None) -> Utterances:
    """The utterances of a part; prepares all parts where they are not there yet, which takes about a minute.

    Args:
        part: of `PARTS`.
        directory: where ``PART.npz`` lie prepared, in place of the cache.

    Raises:
        DlcError: a program or a library that speaks is missing, or a file is damaged.
    """
    path = (directory or prepared_dir()) / f"{part}.npz"
    if directory is None and not path.is_file():
        prepare(prepared_dir())
    return load(path)


def prepared_dir() -> Path:
    """Where the prepared parts lie."""
    return cache_dir() / "asr" / "prepared"


def load(path: Path) -> Utterances:
    """The utterances that a ``.npz`` file holds.

    Raises:
        DlcError: it is missing or damaged.
    """
    try:
        with np.load(path) as arrays:
            frames = tuple(np.split(arrays["frames"], np.cumsum(arrays["lengths"])[:-1]))
            return Utterances(
                frames, tuple(arrays["texts"].tolist()), tuple(arrays["voices"].tolist()), arrays["snr"]
            )  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        raise DlcError(f"{path} holds no utterances: {error}") from error


def save(utterances: Utterances, path: Path) -> None:
    """Write utterances as `load` reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(
        partial,
        frames=np.concatenate(utterances.frames),
        lengths=np.array([len(frames) for frames in utterances.frames], np.int32),
        texts=np.array(utterances.texts),
        voices=np.array(utterances.voices),
        snr=utterances.snr,
    )
    partial.replace(path)


def prepare(directory: Path, sizes: dict[str, tuple[int, int]] = _SIZES) -> None:
    """Synthesise all parts into `directory`, in a process of its own: what eSpeak says depends on what it said before.

    Raises:
        DlcError: a program or a library that speaks is missing.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for part, utterances in pool.apply(synthesise, (sizes,)).items():
            save(utterances, directory / f"{part}.npz")


def synthesise(sizes: dict[str, tuple[int, int]]) -> dict[str, Utterances]:
    """The parts, by their number of utterances and their seed."""
    seen: set[str] = set()
    made = {}
    for part, (count, seed) in sizes.items():
        made[part] = _synthesise_part(part, count, np.random.default_rng(seed), seen)
        seen.update(made[part].texts)
    return made


def _synthesise_part(part: str, count: int, generator: np.random.Generator, seen: set[str]) -> Utterances:
    """`count` utterances of a part, none of which says what others have said (`seen`)."""
    frames: list[features.Frames] = []
    texts: list[str] = []
    spoken_by: list[str] = []
    ratios: list[float] = []
    while len(texts) < count:
        sentence = text.draw_sentence(generator)
        if sentence in seen:
            continue
        speaker = voices.draw_speaker(part, generator)
        ratio = float(generator.uniform(*_SNR))
        samples = voices.speak(sentence, speaker, int(generator.integers(1 << 30)))
        frames.append(features.log_mel(add_noise(samples, ratio, generator)))
        texts.append(sentence)
        spoken_by.append(speaker.voice)
        ratios.append(ratio)
    return Utterances(tuple(frames), tuple(texts), tuple(spoken_by), np.array(ratios, np.float32))


def add_noise(samples: NDArray[np.float32], ratio: float, generator: np.random.Generator) -> NDArray[np.float32]:
    """The samples between two pauses, with stationary noise under all of it: white, pink, brown or between.

    Args:
        samples: (n,), -1..1.
        ratio: mean power of the samples over that of the noise, dB.
        generator: of the noise and the pauses.
    """
    before, after = (int(pause * features.RATE) for pause in generator.uniform(*_PAUSE, 2))
    padded = np.pad(samples, (before, after))
    spectrum = np.fft.rfft(generator.standard_normal(len(padded)))
    slope = generator.uniform(0, 1)
    noise = np.fft.irfft(spectrum / np.maximum(np.arange(len(spectrum)), 20) ** slope, len(padded))
    power = float((samples**2).mean()) / 10 ** (ratio / 10)
    return (padded + noise * np.sqrt(power / (noise**2).mean())).astype(np.float32)


def load_excerpt(name: str) -> Utterances:
    """The committed excerpt ``test`` (100 utterances) or ``calibration`` (16).

    Raises:
        DlcError: no such excerpt.
    """
    if name not in _EXCERPTS:
        raise DlcError(f"no excerpt {name!r} of the utterances (known: {', '.join(_EXCERPTS)})")
    return load(Path(__file__).parent / f"{name}.npz")


def choose_excerpt(name: str, directory: Path | None = None) -> Utterances:
    """Choose an excerpt again: the first utterances of its part."""
    part, count = _EXCERPTS[name]
    found = load_part(part, directory)
    return Utterances(found.frames[:count], found.texts[:count], found.voices[:count], found.snr[:count])


def transcripts() -> tuple[str, ...]:
    """What the training part says, from the committed ``transcripts.txt``: the language models learn from it."""
    return tuple((Path(__file__).parent / "transcripts.txt").read_text(encoding="utf-8").splitlines())


def samples(part: Literal["test", "calibration"]) -> dict[str, NDArray[Any]]:
    """The model's inputs for an embedded excerpt by name: float32 (n, 60, 120), cut or filled up, and int32 (n,)."""
    rows = [features.inputs(frames)[:_STEPS] for frames in load_excerpt(part).frames]
    filled = np.stack([np.pad(row, ((0, _STEPS - len(row)), (0, 0))) for row in rows])
    return {INPUT: filled, LENGTHS: np.array([len(row) for row in rows], np.int32)}
