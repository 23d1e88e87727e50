"""The prompts of Debian's ``asterisk-core-sounds-en-wav`` as mu-law codes, their mel frames, and our excerpts.

558 telephone prompts, 24.6 minutes, of one speaker at 8 kHz: Allison Smith, (c) 2003-2010, CC-BY-SA-3.0; recordings of
silence are left out. A prompt is of the test part where the CRC-32 of its name is 0 modulo 10, of the validation part
where it is 1, else of the training part.

A code is ``floor((f(x) + 1) / 2 * 255 + 1/2)`` with f(x) = sign(x) ln(1 + 255 |x|) / ln 256 for x in -1..1 (van den
Oord et al. 2016, arXiv:1609.03499); 128 stands for silence. ``test.npz`` holds the middle second of 24 test prompts,
``calibration.npz`` the middle half second of 16 training prompts: ``codes`` uint8 (n, samples), ``names`` (n,).
"""

from __future__ import annotations

import wave
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlc.errors import DlcError
from dlc.zoo.packages import DataPackage, locate

RATE = 8000  # samples a second
LEVELS = 256
SILENCE = 128
INPUT = "codes"
MEL_INPUT = "mel"
HOP = 80  # samples a mel frame
BANDS = 24
_WINDOW = 256  # samples

PACKAGES = (
    DataPackage(
        "debian", "asterisk-core-sounds-en-wav", "usr/share/asterisk/sounds/en_US_f_Allison",
        ("activated.wav", "vm-and.wav", "digits/1.wav", "letters/a.wav", "phonetic/a_p.wav"),
    ),
)  # fmt: skip

Part = Literal["train", "validation", "test"]
#: Part, prompts, samples of each and seed of each committed excerpt.
_EXCERPTS: dict[str, tuple[Part, int, int, int]] = {
    "test": ("test", 24, RATE, 1609),
    "calibration": ("train", 16, RATE // 2, 3499),
}

Codes = NDArray[np.uint8]


def encode(x: NDArray[np.floating]) -> Codes:
    """The codes of samples in -1..1, of the same shape."""
    companded = np.sign(x) * np.log1p(255 * np.abs(x)) / np.log(256)
    return np.floor((companded + 1) / 2 * 255 + 0.5).astype(np.uint8)


def decode(codes: NDArray[np.number]) -> NDArray[np.float32]:
    """The samples, -1..1, that codes stand for; between two codes lies what is between their samples."""
    companded = codes.astype(np.float64) / 255 * 2 - 1
    return (np.sign(companded) * np.expm1(np.abs(companded) * np.log(256)) / 255).astype(np.float32)


def read_wav(path: Path) -> NDArray[np.float32]:
    """The samples of a recording, -1..1.

    Raises:
        DlcError: it is no WAV file of 8 kHz, 16 bits and one channel.
    """
    try:
        with wave.open(str(path)) as file:
            form = file.getframerate(), file.getsampwidth(), file.getnchannels()
            content = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise DlcError(f"{path} is not a WAV file: {error}") from error
    if form != (RATE, 2, 1):
        raise DlcError(f"{path} has {form[0]} Hz, {form[1]} bytes a sample, {form[2]} channels, not {RATE} Hz, 2 and 1")
    return np.frombuffer(content, "<i2").astype(np.float32) / np.float32(32768)


def write_wav(path: Path, samples: NDArray[np.floating]) -> None:
    """Write samples, -1..1, as WAV of 8 kHz, 16 bits and one channel."""
    with wave.open(str(path), "wb") as file:
        file.setframerate(RATE)
        file.setsampwidth(2)
        file.setnchannels(1)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


def part_of(name: str) -> Part:
    """The part that a prompt belongs to."""
    parts: dict[int, Part] = {0: "test", 1: "validation"}
    return parts.get(zlib.crc32(name.encode()) % 10, "train")


def load_part(part: Part, directory: Path | None = None) -> dict[str, Codes]:
    """The codes of the prompts of one part by name, in the order of the names.

    Raises:
        DlcError: the recordings are missing, or one is no WAV file of the form expected.
    """
    folder = locate(PACKAGES[0], "wavenet", directory)
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.wav")}
    chosen = (name for name in sorted(found) if part_of(name) == part and not name.startswith("silence/"))
    return {name: encode(read_wav(found[name])) for name in chosen}


def load_prompt(name: str, directory: Path | None = None) -> Codes:
    """The codes of one prompt.

    Raises:
        DlcError: the recordings are missing, or none has this name.
    """
    folder = locate(PACKAGES[0], "wavenet", directory)
    path = folder / f"{name}.wav"
    if not path.is_file():
        raise DlcError(f"no prompt {name!r}; {folder} holds NAME.wav for each, for example 'vm-and'")
    return encode(read_wav(path))


def context(codes: NDArray[np.integer]) -> NDArray[np.int64]:
    """The model's input for codes (..., time): what is known before each, silence before the first."""
    first = np.full((*codes.shape[:-1], 1), SILENCE, np.int64)
    return np.concatenate([first, codes[..., :-1].astype(np.int64)], -1)


def mel_frames(codes: NDArray[np.integer]) -> NDArray[np.float32]:
    """The log-mel frames of codes (time,): float32 (BANDS, ceil(time / HOP)), the k-th centred at sample (k + 1/2) HOP.

    Energies of triangular filters, equally spaced in mel (2595 log10(1 + f / 700), O'Shaughnessy 1987) over 0..4 kHz,
    of a Hann window of 256 samples; natural logarithm of at least 1e-6, shifted and scaled to about -1..1.
    """
    frames = -(-len(codes) // HOP)
    side = (_WINDOW - HOP) // 2
    padded = np.pad(decode(codes), (side, frames * HOP - len(codes) + _WINDOW))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[: frames * HOP : HOP]
    power = np.abs(np.fft.rfft(windows * np.hanning(_WINDOW), axis=1)) ** 2
    return ((np.log(np.maximum(power @ _filters(), 1e-6)) + 5) / 10).T.astype(np.float32)


def upsample(mel: NDArray[np.float32], time: int) -> NDArray[np.float32]:
    """Frames (BANDS, frames) repeated for each sample: (BANDS, time)."""
    return mel.repeat(HOP, 1)[:, :time]


def _filters() -> NDArray[np.float64]:
    """(frequencies, BANDS): the weight of each frequency in each band."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    frequency = np.arange(_WINDOW // 2 + 1)[:, None] * RATE / _WINDOW
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rising, falling), 0)


def load_excerpt(name: str) -> Codes:
    """The committed excerpt ``test`` (24, 8000) or ``calibration`` (16, 4000): the codes.

    Raises:
        DlcError: no such excerpt.
    """
    if name not in _EXCERPTS:
        raise DlcError(f"no excerpt {name!r} of the prompts (known: {', '.join(_EXCERPTS)})")
    with np.load(Path(__file__).parent / f"{name}.npz") as arrays:
        return np.asarray(arrays["codes"], np.uint8)


def choose_excerpt(name: str, directory: Path | None = None) -> dict[str, np.ndarray]:
    """Choose an excerpt again: a seeded draw of prompts that are long enough, the arrays of the ``.npz`` file."""
    part, count, length, seed = _EXCERPTS[name]
    prompts = {name: codes for name, codes in load_part(part, directory).items() if len(codes) >= length}
    names = sorted(np.random.default_rng(seed).choice(sorted(prompts), count, replace=False).tolist())
    starts = [(len(prompts[name]) - length) // 2 for name in names]
    codes = [prompts[name][start : start + length] for name, start in zip(names, starts, strict=True)]
    return {"codes": np.stack(codes), "names": np.array(names)}


def samples(part: Literal["test", "calibration"]) -> dict[str, NDArray[np.int64]]:
    """The model's input for an embedded excerpt, int64 (n, samples), by its name."""
    return {INPUT: context(load_excerpt(part))}
