"""Spectrograms as grey PNG, with nothing but numpy and zlib."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlc.runtime.files import atomic_write

_WINDOW, _HOP = 256, 40  # samples
_RANGE = 70.0  # dB below the loudest that are shown
_BORDER = 6  # pixels between two spectrograms


def spectrogram(samples: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The grey picture of the short-time Fourier transform: (258, frames), 0 Hz below, dark where it is loud.

    Hann windows of 32 ms every 5 ms; two rows a frequency.
    """
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(samples, _WINDOW // 2), _WINDOW)[::_HOP]
    power = np.abs(np.fft.rfft(windows * np.hanning(_WINDOW), axis=1)) ** 2
    decibels = 10 * np.log10(np.maximum(power, 1e-12))
    level = np.clip(1 - (decibels.max() - decibels) / _RANGE, 0, 1)
    return np.repeat((255 * (1 - level)).astype(np.uint8).T[::-1], 2, axis=0)


def write_spectrograms(path: Path, sounds: Sequence[NDArray[np.floating]]) -> None:
    """Write the spectrograms of some sounds, one below the other, as PNG."""
    pictures = [spectrogram(sound) for sound in sounds]
    width = max(picture.shape[1] for picture in pictures)
    rows = [np.pad(p, ((0, _BORDER), (0, width - p.shape[1])), constant_values=255) for p in pictures]
    with atomic_write(path) as file:
        file.write(png(np.concatenate(rows)[:-_BORDER]))


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A grey picture (height, width) as PNG (ISO/IEC 15948): 8 bits a pixel, no filter."""
    height, width = pixels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels], 1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
