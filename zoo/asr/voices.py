"""Many voices: eSpeak NG (accents times variants, from the PyPI package ``espeakng-loader``) and Flite (from Debian).

No voice of one part is heard in another: the parts share neither a variant of eSpeak's nor a voice of Flite's.
Everything a speaker does is drawn from a generator that the caller seeds, so equal seeds give equal samples, on one
version of the two programs.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import subprocess
import sysconfig
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlc.errors import DlcError
from dlc.zoo.packages import DataPackage, locate

RATE = 8000  # samples a second, of everything that is returned
_LIBRARIES = f"usr/lib/{sysconfig.get_config_var('MULTIARCH') or 'x86_64-linux-gnu'}"
FLITE = (
    DataPackage("debian", "flite", "usr/bin", ("flite",)),
    DataPackage("debian", "libflite1", _LIBRARIES, ("libflite.so.1", "libflite_cmu_us_slt.so.1")),
    DataPackage("debian", "libasound2", _LIBRARIES, ("libasound.so.2",)),
)

_ACCENTS = (
    "en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc", "en-029",
)  # fmt: skip
#: Variants of eSpeak's by part; those that whisper or sing like robots are left out.
_VARIANTS = {
    "train": (
        "", "m1", "m2", "m4", "m5", "m7", "m8", "f1", "f3", "f4", "Alex", "Andy", "Denis", "Gene", "Lee", "Marco",
        "Michael", "Mike", "Storm", "adam", "anika", "antonio", "belinda", "boris", "david", "ed", "edward", "gustave",
        "ian", "john", "linda", "max", "michel", "pablo", "paul", "quincy", "rob", "shelby", "steph", "travis", "zac",
        "klatt", "klatt3", "Annie", "grandpa",
    ),
    "validation": ("m3", "f2", "Hugo", "caleb", "Alicia", "klatt2"),
    "test": ("m6", "f5", "Diogo", "Andrea", "benjamin", "victor", "robert", "steph2", "iven", "marcelo", "klatt4"),
}  # fmt: skip
_FLITE_VOICES = {"train": ("awb", "slt", "kal"), "validation": ("kal16",), "test": ("rms",)}
_FLITE_PITCH = {"awb": 110, "slt": 180, "kal": 105, "kal16": 105, "rms": 95}  # Hz
_FLITE_SHARE = {"train": 0.25, "validation": 0.25, "test": 0.25}  # of the utterances
_SAID = {"am": "ay em", "pm": "pee em", "oclock": "o'clock"}  # how the programs say what the transcripts spell

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Speaker:
    """A voice and how it speaks.

    Attributes:
        voice: ``espeak:ACCENT+VARIANT`` or ``flite:NAME``.
        tempo: 1 is the voice's own.
        pitch: likewise.
    """

    voice: str
    tempo: float = 1.0
    pitch: float = 1.0


def draw_speaker(part: str, generator: np.random.Generator) -> Speaker:
    """A speaker of one part."""
    tempo, pitch = float(generator.uniform(0.8, 1.25)), float(generator.uniform(0.8, 1.25))
    if generator.random() < _FLITE_SHARE[part]:
        return Speaker(f"flite:{generator.choice(_FLITE_VOICES[part])}", tempo, pitch)
    variant = str(generator.choice(_VARIANTS[part]))
    return Speaker(f"espeak:{generator.choice(_ACCENTS)}{f'+{variant}' if variant else ''}", tempo, pitch)


def speak(sentence: str, speaker: Speaker, seed: int = 0) -> Samples:
    """The samples, -1..1 at `RATE`, of a sentence; `seed` is of the breath in eSpeak's voices.

    Raises:
        DlcError: the program is missing or knows no such voice.
    """
    program, _, voice = speaker.voice.partition(":")
    said = " ".join(_SAID.get(word, word) for word in sentence.split())
    samples, rate = _flite(said, voice, speaker) if program == "flite" else _espeak(said, voice, speaker, seed)
    return _resample(samples, rate)


def _resample(samples: Samples, rate: int) -> Samples:
    if rate == RATE:
        return samples
    from scipy.signal import resample_poly

    divisor = int(np.gcd(rate, RATE))
    return np.asarray(resample_poly(samples, RATE // divisor, rate // divisor), np.float32)


# --- Flite


def _flite(said: str, voice: str, speaker: Speaker) -> tuple[Samples, int]:
    program, *libraries = (locate(package, "asr") for package in FLITE)
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, libraries))}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "speech.wav"
        command = [
            str(program / "flite"), "-voice", voice, "--setf", f"duration_stretch={1 / speaker.tempo:.3f}",
            "--setf", f"int_f0_target_mean={_FLITE_PITCH[voice] * speaker.pitch:.1f}", "-t", said, "-o", str(out),
        ]  # fmt: skip
        try:
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            with wave.open(str(out)) as file:
                content, rate = file.readframes(file.getnframes()), file.getframerate()
        except (OSError, subprocess.CalledProcessError, wave.Error) as error:
            detail = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            raise DlcError(f"flite does not speak: {detail[-1] if detail else 'it failed'}") from error
    return np.frombuffer(content, "<i2").astype(np.float32) / np.float32(32768), rate


# --- eSpeak NG

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1  # speak_lib.h
_RATE_PARAMETER, _PITCH_PARAMETER = 1, 3
_WORDS_A_MINUTE, _PITCH = 165, 50  # eSpeak's usual rate and the middle of its pitch scale


class _Espeak:
    """The library, initialised once a process."""

    def __init__(self) -> None:
        path, data = _espeak_files()
        self._library: Any = ctypes.CDLL(path)
        self.rate = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _DONT_EXIT))
        if self.rate <= 0:
            raise DlcError(f"eSpeak NG does not start with the data in {data}")
        self._heard: list[NDArray[np.int16]] = []
        self._callback = _CALLBACK(self._hear)
        self._library.espeak_SetSynthCallback(self._callback)

    def _hear(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, said: str, voice: str, speaker: Speaker, seed: int) -> Samples:
        library = self._library
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise DlcError(f"eSpeak NG has no voice {voice!r}")
        library.espeak_SetParameter(_RATE_PARAMETER, round(_WORDS_A_MINUTE * speaker.tempo), 0)
        library.espeak_SetParameter(_PITCH_PARAMETER, round(_PITCH * speaker.pitch), 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._heard.clear()
        text = said.encode()
        library.espeak_Synth(text, len(text) + 1, 0, 0, 0, _UTF8, None, None)
        library.espeak_Synchronize()
        if not self._heard:
            raise DlcError(f"eSpeak NG's voice {voice!r} says nothing")
        return np.concatenate(self._heard).astype(np.float32) / np.float32(32768)


def _espeak_files() -> tuple[str, str]:
    try:
        loader: Any = importlib.import_module("espeakng_loader")
    except ImportError:
        raise DlcError("eSpeak NG's voices come with the package espeakng-loader: pip install 'dlc[zoo]'") from None
    return str(loader.get_library_path()), str(loader.get_data_path())


@functools.cache
def _engine() -> _Espeak:
    return _Espeak()


def _espeak(said: str, voice: str, speaker: Speaker, seed: int) -> tuple[Samples, int]:
    engine = _engine()
    return engine.speak(said, voice, speaker, seed), engine.rate
