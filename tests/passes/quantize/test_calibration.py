"""Histograms, the methods on known distributions, and what wrong calibration data gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import tirx

from dlc.errors import DlcError
from dlc.ir import arithmetic
from dlc.ir.convert import view
from dlc.ir.graph import Graph, Value
from dlc.options import Options
from dlc.passes.quantize import calibrate
from dlc.passes.quantize.histogram import BINS, Histogram, choose, least_squares, percentile
from dlc.passes.quantize.samples import RANDOM_EXTENT, calibration_samples
from dlc.pipeline import Context
from tests.passes.quantize.helpers import Build

NORMAL = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)


def histogram(*arrays: np.ndarray) -> Histogram:
    made = Histogram()
    for array in arrays:
        made.add(array)
    return made


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20), min_size=1, max_size=8))
def test_the_histogram_loses_nothing_as_it_grows(parts: list[list[float]]) -> None:
    arrays = [np.array(part, np.float32) for part in parts]
    made, whole = histogram(*arrays), np.concatenate(arrays)
    assert made.counts.sum() == whole.size
    assert (made.lo, made.hi) == (whole.min(), whole.max())
    assert made.start <= min(made.lo, 0)
    assert made.start + BINS * made.width >= made.hi * (1 - 1e-12)
    # Half of the numbers lie below the middle bin's edge, give or take that bin.
    edge = made.start + made.width * (BINS // 2)
    slack = int(np.sum(np.abs(whole - edge) <= made.width))
    assert abs(int(made.counts[: BINS // 2].sum()) - int(np.sum(whole < edge))) <= slack


def test_methods_on_a_normal_distribution_with_one_outlier() -> None:
    made = histogram(NORMAL, np.array([100], np.float32))
    assert choose(made, "minmax", shift=False) == (float(NORMAL.min()), 100.0)
    lo, hi = percentile(made)
    assert lo == pytest.approx(np.quantile(NORMAL, 0.0001), abs=0.2)
    assert hi == pytest.approx(np.quantile(NORMAL, 0.9999), abs=0.2)
    lo, hi = least_squares(made)
    # The outlier is worth more than its rounding would cost in minmax, but far from all of its distance.
    assert 4 < hi < 100
    assert lo < -3


@pytest.mark.parametrize("freedom", [3, 5, 30])
def test_the_squared_error_method_finds_what_a_search_finds(freedom: int) -> None:
    data = np.random.default_rng(1).standard_t(freedom, 20_000).astype(np.float32)
    made = histogram(data)

    def error(lo: float, hi: float) -> float:
        scale, zero = arithmetic.activation_parameters(lo, hi)
        codes = arithmetic.quantize(data, scale, zero, np.uint8)
        return float(np.mean((arithmetic.dequantize(codes, scale, zero) - data) ** 2))

    fractions = np.arange(1, 33) / 32
    best = min(error(made.lo * a, made.hi * b) for a in fractions for b in fractions)
    assert error(*choose(made, "mse", shift=False)) < 1.1 * best
    assert error(*choose(made, "mse", shift=False)) <= error(*choose(made, "minmax", shift=False))


def test_a_relu_keeps_its_lower_end() -> None:
    made = histogram(np.maximum(NORMAL, 0))
    for method in ("minmax", "percentile", "mse"):
        lo, hi = choose(made, method, shift=False)
        assert lo == pytest.approx(0, abs=1e-3)
        assert 2 < hi <= NORMAL.max()


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_shift_ranges_have_scales_that_are_powers_of_two(method: str) -> None:
    for data in (NORMAL, NORMAL * 3 + 2, np.abs(NORMAL) * 1e-4, np.zeros(5, np.float32)):
        scale, _ = arithmetic.activation_parameters(*choose(histogram(data), method, shift=True))
        assert np.frexp(scale)[0] == 0.5


def test_numbers_that_are_not_finite_are_not_counted() -> None:
    made = histogram(np.array([1, np.inf, 2, np.nan], np.float32), np.array([np.nan], np.float32))
    assert not made.finite
    assert (made.lo, made.hi, made.counts.sum()) == (1, 2, 2)


def small() -> object:
    b = Build()
    x = b.input("x", (tirx.Var("N", "int64"), 3), "float32")
    return b.finish([b.op("relax.log", b.op("relax.add", x, np.float32(1), name="a"), name="l")])


def test_the_pass_notes_ranges_and_what_is_not_finite() -> None:
    seen: list[tuple[str, int, int]] = []
    samples = [{"x": np.array([[0, 1, 2]], np.float32)}, {"x": np.array([[-1, 1, 3]], np.float32)}]
    context = Context(Options(quantize="int8"), samples, progress=lambda *step: seen.append(step))
    module = small()
    assert calibrate.run(module, context) is module
    notes = context.notes["calibration"]
    assert notes["samples"] == 2
    assert notes["ranges"] == {"x": (-1, 3), "a": (0, 4)}
    assert notes["not_finite"] == ["l"]
    assert seen == [("calibrate", 0, 2), ("calibrate", 1, 2)]


def test_no_calibration_data() -> None:
    with pytest.raises(DlcError, match="needs calibration data"):
        calibrate.run(small(), Context(Options(quantize="int8")))
    with pytest.raises(DlcError, match="holds no samples"):
        calibrate.run(small(), Context(Options(quantize="int8"), []))
    with pytest.raises(DlcError, match="sample 1 has no array for input 'x'"):
        calibrate.run(small(), Context(Options(quantize="int8"), [{}]))


# --- files -----------------------------------------------------------------------------------------------------------

INPUTS = (Value("image", ("N", 1, 4, 4), "float32"), Value("ids", ("N", 5), "int64"))
GRAPH = Graph("main", INPUTS, (), (), {})
FIXED = Graph("main", (Value("x", (3, 2), "float32"),), (), (), {})


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def good(count: int) -> dict[str, np.ndarray]:
    return {"image": np.arange(count * 16, dtype=np.float32).reshape(count, 1, 4, 4), "ids": np.ones((count, 5), int)}


def test_batches_of_a_file_and_a_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", **good(70))
    samples = calibration_samples(path, GRAPH)
    assert [len(s["image"]) for s in samples] == [32, 32, 6]
    assert len(samples) == 3
    np.testing.assert_array_equal(np.concatenate([s["image"] for s in samples]), good(70)["image"])
    write(tmp_path / "b.npz", **good(3))
    assert [len(s["ids"]) for s in calibration_samples(str(tmp_path), GRAPH)] == [32, 32, 6, 3]


def test_an_extra_sample_axis(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", x=np.zeros((7, 3, 2), np.float64))
    samples = list(calibration_samples(path, FIXED))
    assert [s["x"].shape for s in samples] == [(3, 2)] * 7
    assert samples[0]["x"].dtype == np.float32


def test_a_fixed_batch_is_filled(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", x=np.zeros((8, 2), np.float32))
    assert [s["x"].shape for s in calibration_samples(path, FIXED)] == [(3, 2)] * 2


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"image": good(2)["image"]}, "no array for input 'ids'; it has image"),
        ({**good(2), "label": np.ones(2)}, "array 'label' is no input; the inputs are image, ids"),
        (
            {**good(2), "image": np.zeros((2, 3, 4, 4), np.float32)},
            "array 'image' has shape [2, 3, 4, 4], but the input has shape [N, 1, 4, 4]",
        ),
        ({**good(2), "image": np.zeros((2, 1, 4, 4), np.uint8)}, "array 'image' is uint8, but the input is float32"),
        ({**good(2), "ids": np.ones((3, 5), int)}, "different numbers of samples: {'image': 2, 'ids': 3}"),
        ({**good(2), "ids": np.ones((2, 1, 5), int)}, "some arrays have an extra sample axis and others do not"),
    ],
)
def test_arrays_that_do_not_match(tmp_path: Path, arrays: dict[str, np.ndarray], text: str) -> None:
    path = write(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DlcError) as error:
        calibration_samples(path, GRAPH)
    assert str(error.value).startswith(f"calibration '{path}': ")
    assert text in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DlcError, match="no such file or folder"):
        calibration_samples(tmp_path / "none.npz", GRAPH)
    with pytest.raises(DlcError, match=r"the folder holds no \.npz file"):
        calibration_samples(tmp_path, GRAPH)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DlcError, match=r"not a readable \.npz file"):
        calibration_samples(tmp_path / "text.npz", GRAPH)
    whole = write(tmp_path / "cut.npz", **good(2)).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DlcError, match=r"not a readable \.npz file"):
        calibration_samples(tmp_path / "cut.npz", GRAPH)
    with pytest.raises(DlcError, match="the seed must be a whole number"):
        calibration_samples("random:x", GRAPH)
    path = write(tmp_path / "few.npz", x=np.zeros((2, 2), np.float32))
    with pytest.raises(DlcError, match="2 samples do not fill the inputs' batch of 3"):
        calibration_samples(path, FIXED)


def test_random_samples_repeat_and_index_what_they_may() -> None:
    b = Build()
    ids = b.input("ids", (tirx.Var("N", "int64"), tirx.Var("S", "int64")), "int64")
    mask = b.input("mask", (tirx.Var("N", "int64"), 3), "int64")
    table = b.op("relax.take", b.normal(50, 4), ids, axis=0)
    graph = view(b.finish([table, b.op("relax.astype", mask, dtype="float32")]))
    first, again = (list(calibration_samples("random:3", graph)) for _ in range(2))
    assert len(first) == 8
    assert all(np.array_equal(a[k], c[k]) for a, c in zip(first, again, strict=True) for k in a)
    assert first[0]["ids"].shape == (1, RANDOM_EXTENT)
    assert first[0]["mask"].shape == (1, 3)
    assert 30 < max(s["ids"].max() for s in first) < 50
    assert max(s["mask"].max() for s in first) == 1
