"""Real recordings with transcripts: those prompts of Asterisk whose name says what is spoken.

The package has no transcripts, so these are read off the names of the files; they are words of `text.WORDS`. Asterisk
says numbers, dates and messages by joining such prompts; `joined` does the same. Nobody is trained on any of this.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dlc.zoo.asr import features, text
from dlc.zoo.asr.data import PROMPTS, Utterances, add_noise
from dlc.zoo.packages import locate
from dlc.zoo.wavenet.data import read_wav

_NAMES = {
    **{f"digits/{n}": word for n, word in enumerate((*text.DIGITS, *text.TEENS))},
    **{f"digits/{10 * n}": word for n, word in enumerate(text.TENS, 2)},
    **{f"digits/h-{n}": word for n, word in enumerate(text.ORDINALS[:20], 1)},
    "digits/h-30": "thirtieth",
    **{f"digits/day-{n}": word for n, word in enumerate(text.DAYS)},
    **{f"digits/mon-{n}": word for n, word in enumerate(text.MONTHS)},
    **{f"digits/{word}": word for word in (
        "hundred", "thousand", "million", "today", "tomorrow", "yesterday", "oclock", "dollars", "star", "at",
    )},
    "digits/a-m": "am", "digits/p-m": "pm",
    **{word: word for word in ("hello", "goodbye", "minutes", "minute", "seconds", "hours", "number", "extension")},
    "vm-and": "and", "vm-youhave": "you have", "vm-INBOX": "new", "vm-Old": "old", "vm-messages": "messages",
    "vm-message": "message", "vm-press": "press",
}  # fmt: skip
_SEED, _JOINED = 2003, 100
_SNR = 35.0  # dB: the prompts are cut close, so they get pauses and faint noise, as every utterance of the parts has


def isolated(directory: Path | None = None) -> Utterances:
    """Each prompt by itself.

    Raises:
        DlcError: the recordings are missing, or one is no WAV file of the form expected.
    """
    recordings = _recordings(directory)
    return _utterances(list(_NAMES.values()), [recordings[name] for name in _NAMES])


def joined(directory: Path | None = None) -> Utterances:
    """100 sentences of the kinds that Asterisk says, each prompt behind the other; drawn by a seed.

    Raises:
        DlcError: as `isolated`.
    """
    recordings = _recordings(directory)
    generator = np.random.default_rng(_SEED)
    sentences = [_sentence(generator) for _ in range(_JOINED)]
    sounds = [np.concatenate([recordings[name] for name in names]) for names in sentences]
    return _utterances([" ".join(_NAMES[name] for name in names) for names in sentences], sounds)


def _sentence(generator: np.random.Generator) -> list[str]:
    """The names of the prompts of a telephone number, a count of messages, a date or a time."""

    def draw(low: int, high: int) -> int:
        return int(generator.integers(low, high))

    kind = draw(0, 4)
    if kind == 0:
        return [f"digits/{draw(0, 10)}" for _ in range(draw(3, 8))]
    if kind == 1:
        return ["vm-youhave", f"digits/{draw(2, 20)}", ("vm-INBOX", "vm-Old")[draw(0, 2)], "vm-messages"]
    if kind == 2:
        return [f"digits/day-{draw(0, 7)}", f"digits/mon-{draw(0, 12)}", f"digits/h-{draw(1, 21)}"]
    minute = ("digits/oclock", *(f"digits/{10 * n}" for n in range(1, 6)))[draw(0, 6)]
    return ["digits/at", f"digits/{draw(1, 13)}", minute, ("digits/a-m", "digits/p-m")[draw(0, 2)]]


def _recordings(directory: Path | None) -> dict[str, np.ndarray]:
    folder = locate(PROMPTS[0], "asr", directory)
    return {name: read_wav(folder / f"{name}.wav") for name in _NAMES}


def _utterances(texts: list[str], sounds: list[np.ndarray]) -> Utterances:
    generator = np.random.default_rng(_SEED)
    frames = tuple(features.log_mel(add_noise(samples, _SNR, generator)) for samples in sounds)
    snr = np.full(len(texts), _SNR, np.float32)
    return Utterances(frames, tuple(texts), ("Allison Smith",) * len(texts), snr)
