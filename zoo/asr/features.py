"""Log-mel frames: 40 filters over 64 to 3,800 Hz, every 10 ms, as bytes; normalised and stacked they feed the models.

A frame is kept as a byte a band, ``round(5 log(energy))`` within 0..255, for samples in the range of 16-bit audio.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlc.errors import DlcError

RATE = 8000  # samples a second
BANDS = 40
FRAMES_A_SECOND = 100
STACK = 3  # frames that the network is given at once, so that it makes a third of the steps (Sak et al. 2015)
WIDTH = STACK * BANDS
STEPS = 5.0  # bytes in a natural logarithm of energy: a step of 0.87 dB
_LOW, _HIGH = 64.0, 3800.0  # Hz

Frames = NDArray[np.uint8]


def log_mel(samples: NDArray[np.floating]) -> Frames:
    """The frames of samples (n,), -1..1 at `RATE`: uint8 (about n / 80, `BANDS`), by kaldi-native-fbank.

    Raises:
        DlcError: kaldi-native-fbank is not installed, or there is not one window of samples.
    """
    try:
        import kaldi_native_fbank
    except ImportError:
        raise DlcError("log-mel frames need kaldi-native-fbank: pip install 'dlc[zoo]'") from None
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = RATE
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = BANDS
    options.mel_opts.low_freq = _LOW
    options.mel_opts.high_freq = _HIGH
    computer = kaldi_native_fbank.OnlineFbank(options)
    computer.accept_waveform(RATE, (samples.astype(np.float32) * 32768).tolist())
    computer.input_finished()
    if not computer.num_frames_ready:
        raise DlcError(f"{len(samples)} samples are less than a window of 25 ms")
    frames = np.stack([computer.get_frame(k) for k in range(computer.num_frames_ready)])
    return np.clip(np.round(frames * STEPS), 0, 255).astype(np.uint8)


def normalise(frames: NDArray[np.number]) -> NDArray[np.float32]:
    """Frames (time, bands) with the mean 0 and the variance 1 in each band of the utterance."""
    values = frames.astype(np.float32)
    return (values - values.mean(0)) / np.maximum(values.std(0), 1e-3)


def stack(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Frames (time, bands) in threes, (ceil(time / 3), 3 bands); the last is filled up with itself."""
    missing = -len(frames) % STACK
    return np.pad(frames, ((0, missing), (0, 0)), mode="edge").reshape(-1, STACK * frames.shape[1])


def inputs(frames: Frames) -> NDArray[np.float32]:
    """What the network is given for the frames of an utterance: (ceil(time / 3), `WIDTH`)."""
    return stack(normalise(frames))
