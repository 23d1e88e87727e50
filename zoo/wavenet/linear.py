"""What WaveNet is compared with first: linear prediction, with a mixture of Laplace distributions around it.

The prediction is a fixed combination of the samples before, by least squares over the training part (Makhoul, "Linear
Prediction: A Tutorial Review", 1975). The residual's distribution is a mixture of Laplace densities of mean 0, by EM; a
code's probability is the mass between the amplitudes of c - 1/2 and c + 1/2, and the outermost codes have the tails.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlc.zoo.wavenet.data import LEVELS, Codes, decode

ORDER = 32
_COMPONENTS = 4
_STEPS = 40
_EVERY = 40  # of the residuals that EM sees; neighbours are alike
_NARROWEST = 1e-5  # of the full amplitude
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LinearPredictor:
    """A fitted predictor.

    Attributes:
        coefficients: (ORDER,), the oldest sample's first.
        shares: (components,) of the mixture.
        scales: (components,), the mean absolute residual of each; full amplitude is 1.
    """

    coefficients: Floats
    shares: Floats
    scales: Floats

    def bits(self, codes: Codes) -> Floats:
        """-log2 P of each code given those before it, (time,); silence is before the first."""
        mean = _history(decode(codes)) @ self.coefficients
        low = np.where(codes == 0, -np.inf, decode(codes - 0.5) - mean)
        high = np.where(codes == LEVELS - 1, np.inf, decode(codes + 0.5) - mean)
        mass = sum(
            share * _mass(low / scale, high / scale) for share, scale in zip(self.shares, self.scales, strict=True)
        )
        return np.asarray(-np.log2(np.maximum(mass, 1e-30)))


def fit(prompts: Iterable[Codes]) -> LinearPredictor:
    """The predictor that fits some prompts best."""
    sounds = [decode(codes).astype(np.float64) for codes in prompts]
    gram, cross = np.zeros((ORDER, ORDER)), np.zeros(ORDER)
    for sound in sounds:
        rows = _history(sound)
        gram += rows.T @ rows
        cross += rows.T @ sound
    coefficients = np.linalg.solve(gram + 1e-9 * np.trace(gram) / ORDER * np.eye(ORDER), cross)
    residuals = [(sound - _history(sound) @ coefficients)[::_EVERY] for sound in sounds]
    return LinearPredictor(coefficients, *_mixture(np.abs(np.concatenate(residuals))))


def _history(sound: NDArray[np.floating]) -> Floats:
    """For each sample the ORDER samples before it: (time, ORDER)."""
    padded = np.concatenate([np.zeros(ORDER), sound[:-1]])
    return np.lib.stride_tricks.sliding_window_view(padded, ORDER)


def _mixture(sizes: Floats) -> tuple[Floats, Floats]:
    """Shares and scales of a mixture of Laplace densities for residuals of these absolute values, by EM."""
    scales = np.maximum(sizes.mean() * 8.0 ** np.arange(2 - _COMPONENTS, 2), _NARROWEST)
    shares = np.full(_COMPONENTS, 1 / _COMPONENTS)
    for _ in range(_STEPS):
        density = shares / scales * np.exp(-sizes[:, None] / scales)
        weight = density / np.maximum(density.sum(1, keepdims=True), 1e-300)
        shares = weight.mean(0)
        scales = np.maximum((weight * sizes[:, None]).sum(0) / np.maximum(weight.sum(0), 1e-9), _NARROWEST)
    return shares, scales


def _mass(low: Floats, high: Floats) -> Floats:
    """The mass of the Laplace density of scale 1 between two places, without cancellation in the tails."""
    flip = low > 0  # mirrored, so that what is right of 0 is measured from the left tail
    low, high = np.where(flip, -high, low), np.where(flip, -low, high)
    return np.where(high > 0, 1 - np.exp(-np.abs(high)) / 2, np.exp(-np.abs(high)) / 2) - np.exp(-np.abs(low)) / 2
