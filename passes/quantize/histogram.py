"""What calibration remembers of one value: its range and a histogram, in constant memory; and how a range is chosen.

The histogram has `BINS` bins. When a number falls outside, neighbouring bins merge in pairs, which doubles the range to
that side; so the samples are seen once, in any order, and none is kept.

Sources: the doubling histogram is PyTorch's ``HistogramObserver`` in spirit; the squared-error search weighs rounding
noise ``step**2 / 12`` against clipping (Banner et al., "Post training 4-bit quantization", NeurIPS 2019, section 3).
"""

from __future__ import annotations

import numpy as np

from dlc.ir import arithmetic

BINS = 2048
PERCENTILE = 99.99
_CANDIDATES = 128


class Histogram:
    """Running minimum, maximum and histogram of one value.

    Attributes:
        lo, hi: the least and the greatest number seen.
        finite: False once a NaN or an infinity was seen; such numbers are not counted.
        zeros: how many numbers were exactly 0: these are never rounded.
    """

    def __init__(self, keep_bins: bool = True) -> None:
        self.lo, self.hi, self.finite, self.zeros = np.inf, -np.inf, True, 0
        self.start, self.width = 0.0, 0.0
        self.counts = np.zeros(BINS if keep_bins else 0, np.int64)

    def add(self, array: np.ndarray) -> None:
        """Count the numbers of `array`."""
        numbers = np.ravel(array)
        if numbers.dtype.itemsize < 4:  # float16 and bfloat16 have no fast reductions
            numbers = numbers.astype(np.float32)
        if numbers.size == 0:
            return
        lo, hi = float(numbers.min()), float(numbers.max())
        if not (np.isfinite(lo) and np.isfinite(hi)):
            self.finite = False
            numbers = numbers[np.isfinite(numbers)]
            if numbers.size == 0:
                return
            lo, hi = float(numbers.min()), float(numbers.max())
        self.lo, self.hi = min(self.lo, lo), max(self.hi, hi)
        if self.counts.size:
            self._cover(lo, hi)
            index = ((numbers - np.float64(self.start)) / self.width).astype(np.int64)
            self.counts += np.bincount(np.clip(index, 0, BINS - 1), minlength=BINS)
            self.zeros += numbers.size - int(np.count_nonzero(numbers))

    def _cover(self, lo: float, hi: float) -> None:
        """Extend the range to [lo, hi] by doubling."""
        if self.width == 0.0:
            self.start = min(lo, 0.0)
            # Not zero for a value that is constantly 0, and not subnormal.
            self.width = max((max(hi, 0.0) - self.start) / BINS, 1e-30)
        while hi > self.start + BINS * self.width:
            self._merge(into=0)
        while lo < self.start:
            self.start -= BINS * self.width
            self._merge(into=BINS // 2)

    def _merge(self, into: int) -> None:
        pairs = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros_like(self.counts)
        self.counts[into : into + BINS // 2] = pairs
        self.width *= 2

    @property
    def centres(self) -> np.ndarray:
        """The middle of each bin, cut to the range that was really seen."""
        middles = self.start + (np.arange(BINS) + 0.5) * self.width
        return np.clip(middles, self.lo, self.hi)


def percentile(histogram: Histogram, percent: float = PERCENTILE) -> tuple[float, float]:
    """The range that leaves ``100 - percent`` of the numbers out at each end (interpolated inside a bin)."""
    cumulative = np.concatenate([[0], np.cumsum(histogram.counts)]).astype(np.float64)
    edges = histogram.start + np.arange(BINS + 1) * histogram.width
    share = percent / 100 * cumulative[-1]
    hi = float(np.interp(share, cumulative, edges))
    lo = float(np.interp(cumulative[-1] - share, cumulative, edges))
    return max(lo, histogram.lo), min(hi, histogram.hi)


def squared_errors(histogram: Histogram, los: np.ndarray, his: np.ndarray) -> np.ndarray:
    """The expected sum of squared errors of 8-bit codes over every range [los[i], his[j]]: shape (los, his).

    Numbers inside a range have the variance ``step**2 / 12`` of uniform rounding, zeros none, the others are cut.
    """
    centres, counts = histogram.centres, histogram.counts.astype(np.float64)
    above = np.maximum(centres[None] - his[:, None], 0)
    below = np.maximum(los[:, None] - centres[None], 0)
    cut = (below**2 @ counts)[:, None] + (above**2 @ counts)[None]
    inside = counts.sum() - histogram.zeros - ((below > 0) @ counts)[:, None] - ((above > 0) @ counts)[None]
    steps = (np.maximum(his, 0)[None] - np.minimum(los, 0)[:, None]) / 255
    return cut + np.maximum(inside, 0) * steps**2 / 12


def least_squares(histogram: Histogram) -> tuple[float, float]:
    """The range of the least expected squared error, among `_CANDIDATES` fractions of each end."""
    fractions = np.arange(1, _CANDIDATES + 1) / _CANDIDATES
    his = histogram.hi * fractions if histogram.hi > 0 else np.zeros(1)
    los = histogram.lo * fractions if histogram.lo < 0 else np.zeros(1)
    errors = squared_errors(histogram, los, his)
    row, column = np.unravel_index(int(np.argmin(errors)), errors.shape)
    return float(los[row]), float(his[column])


def shift_range(histogram: Histogram, lo: float, hi: float) -> tuple[float, float]:
    """The range nearest to [lo, hi] whose scale is a power of two: the better of the next smaller and larger scale.

    The range returned is exactly ``[-z * scale, (255 - z) * scale]``.
    """
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    if lo == hi:
        return lo, hi
    scale, _ = arithmetic.activation_parameters(lo, hi)
    zero = int(np.rint(-lo / (hi - lo) * 255))
    exponent = np.floor(np.log2(float(scale)))
    ranges = [(-zero * step, (255 - zero) * step) for step in (2.0**exponent, 2.0 ** (exponent + 1))]
    if float(scale) == 2.0**exponent:
        return ranges[0]
    errors = [float(squared_errors(histogram, np.array([a]), np.array([b]))[0, 0]) for a, b in ranges]
    return ranges[int(np.argmin(errors))]


def choose(histogram: Histogram, method: str, shift: bool) -> tuple[float, float]:
    """The range of a value by the named method (``minmax``, ``percentile`` or ``mse``)."""
    if method == "percentile":
        lo, hi = percentile(histogram)
    elif method == "mse":
        lo, hi = least_squares(histogram)
    else:
        lo, hi = histogram.lo, histogram.hi
    return shift_range(histogram, lo, hi) if shift else (lo, hi)
