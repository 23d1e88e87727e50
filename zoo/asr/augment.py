"""Other voices, tempos and noises from the frames of an utterance; nothing here changes what is said.

- tempo: frames are interpolated in time, all utterances of a batch to one length, so that nothing is filled up;
- vocal tract: bands are interpolated along the frequency (Jaitly and Hinton, "Vocal Tract Length Perturbation", 2013);
- noise: energies of a stationary sound are added;
- gaps: bands and frames are blanked (Park et al., "SpecAugment", 2019).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlc.zoo.asr.features import BANDS, FRAMES_A_SECOND, STEPS

TEMPO = (0.85, 1.15)  # of the batch; each utterance also moves as far as it is longer or shorter than the others
_TRACT = (0.9, 1.12)
_NOISE_SHARE = 0.5  # of the utterances
_NOISE = (8.0, 30.0)  # dB below the mean energy in the bands
_TILT = 1.5  # natural logarithms of energy, either way over all bands
_GAPS, _GAP_BANDS, _GAP_FRAMES = 1, 6, FRAMES_A_SECOND // 10  # how many of each, and the largest

Floats = NDArray[np.float32]


def augment(frames: NDArray[np.uint8], length: int, generator: np.random.Generator) -> tuple[Floats, NDArray[np.bool_]]:
    """Frames (time, bands) as another speaker elsewhere would have said them: (length, bands).

    Returns:
        The frames, and which of their values are blanked: they are to be 0 once the frames are normalised.
    """
    values = frames.astype(np.float32)
    values = interpolate(values, np.linspace(0, len(values) - 1, length))
    values = interpolate(values.T, np.arange(BANDS) * float(generator.uniform(*_TRACT))).T
    if generator.random() < _NOISE_SHARE:
        values = _add_noise(values, generator)
    return values, _gaps(len(values), generator)


def interpolate(rows: Floats, places: NDArray[np.floating]) -> Floats:
    """Rows (n, k) at fractional places (m,): (m, k); behind the last there is the last."""
    places = np.minimum(places, len(rows) - 1)
    first = np.minimum(places.astype(np.int64), len(rows) - 2)
    share = (places - first).astype(np.float32)[:, None]
    return rows[first] * (1 - share) + rows[first + 1] * share


def _add_noise(values: Floats, generator: np.random.Generator) -> Floats:
    energy = np.exp(values / np.float32(STEPS))
    level = np.log(energy.mean()) - float(generator.uniform(*_NOISE)) * np.log(10) / 10
    tilt = float(generator.uniform(-_TILT, _TILT)) * np.linspace(-1, 1, BANDS)
    # The energy of noise in one frame scatters about its mean: chi-squared of some degrees of freedom a band.
    scatter = generator.gamma(4.0, 0.25, values.shape)
    return (STEPS * np.log(energy + np.exp(level + tilt) * scatter)).astype(np.float32)


def _gaps(time: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    blank = np.zeros((time, BANDS), np.bool_)
    for _ in range(_GAPS):
        width, length = int(generator.integers(_GAP_BANDS + 1)), int(generator.integers(_GAP_FRAMES + 1))
        band, frame = int(generator.integers(BANDS - width + 1)), int(generator.integers(max(time - length, 0) + 1))
        blank[:, band : band + width] = True
        blank[frame : frame + length] = True
    return blank
