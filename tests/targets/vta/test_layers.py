"""Random layers, written as integer graphs, compiled and simulated: equal to the interpreter element for element."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlc.targets.vta.config import Config, config_by_name
from tests.targets.vta.graphs import Net, run

Q31, ORIGINAL = config_by_name("q31"), config_by_name("original")
#: Buffers so small that most layers take several tiles, groups and chunks.
SMALL = {"uop_bytes": 4 << 10, "inp_bytes": 4 << 10, "wgt_bytes": 16 << 10, "acc_bytes": 8 << 10}
CONFIGS = [Q31, ORIGINAL, replace(Q31, **SMALL), replace(ORIGINAL, **SMALL)]

_settings = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
seeds, zeros, configs = st.integers(0, 2**31), st.sampled_from([0, 3, 128, 255]), st.sampled_from(CONFIGS)


def net(config: Config, shape: tuple[int, ...], seed: int) -> Net:
    return Net(shape, seed, shifts=not config.requantise)


@st.composite
def windows(draw: st.DrawFn, kernels: st.SearchStrategy[int]) -> tuple:
    """(shape, kernel, strides, pads), the window inside the padded image."""
    channels = draw(st.sampled_from([1, 3, 16, 17, 40]))
    kernel = (draw(kernels), draw(kernels))
    pads = tuple(draw(st.integers(0, k - 1)) for k in (*kernel, *kernel))
    shape = (channels, *(draw(st.integers(max(1, k - pads[i] - pads[i + 2]), 14)) for i, k in enumerate(kernel)))
    return shape, kernel, (draw(st.integers(1, 3)), draw(st.integers(1, 3))), pads


@_settings
@given(
    configs,
    windows(st.sampled_from([1, 2, 3, 5])),
    st.sampled_from([1, 10, 16, 33, 64]),
    zeros,
    zeros,
    st.booleans(),
    seeds,
)
def test_convolutions(
    config: Config, window: tuple, out: int, x_zero: int, zero: int, channel: bool, seed: int
) -> None:
    shape, kernel, strides, pads = window
    n = net(config, shape, seed)
    # Behind another layer, so that padding lies in memory that an earlier layer wrote around.
    first = n.conv("x", 16, (1, 1), zero=5)
    x = n.requantize([first], [0], 40_000, x_zero, 0, 255, channel)
    sums = n.conv(x, out, kernel, strides, pads, zero=x_zero, bias=bool(seed % 2))
    y = n.requantize([sums], [0], 30_000, zero, min(zero, 20), 255, channel)
    _, selection, _ = run(n.graph(y), config, seed)
    assert list(selection.matches) == [x, y]


@_settings
@given(configs, windows(st.sampled_from([1, 3, 5])), st.sampled_from([8, 16, 20]), zeros, seeds)
def test_first_convolutions_read_patches(config: Config, window: tuple, out: int, x_zero: int, seed: int) -> None:
    shape, kernel, strides, pads = window
    n = net(config, shape, seed)
    y = n.requantize([n.conv("x", out, kernel, strides, pads, zero=x_zero)], [0], 30_000, 0, 0, 255, True)
    run(n.graph(y), config, seed)


@_settings
@given(
    configs, windows(st.sampled_from([1, 3])), st.sampled_from(["depthwise", "4", "16", "2", "multiple"]), zeros, seeds
)
def test_groups(config: Config, window: tuple, form: str, x_zero: int, seed: int) -> None:
    shape, kernel, strides, pads = window
    channels = {"depthwise": shape[0], "4": 24, "16": 48, "2": 12, "multiple": shape[0]}[form]
    groups = {"depthwise": channels, "4": 6, "16": 3, "2": 2, "multiple": channels}[form]
    n = net(config, (channels, *shape[1:]), seed)
    sums = n.conv("x", channels * (2 if form == "multiple" else 1), kernel, strides, pads, groups=groups, zero=x_zero)
    run(n.graph(n.requantize([sums], [0], 20_000, 7, 0, 255, True)), config, seed)


@_settings
@given(configs, st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 16, 35]), zeros, zeros, seeds)
def test_residuals_and_additions(
    config: Config, height: int, width: int, channels: int, x_zero: int, zero: int, seed: int
) -> None:
    n = net(config, (channels, height, width), seed)
    y = n.requantize([n.conv("x", channels, (3, 3), pads=(1,) * 4, zero=x_zero)], [0], 60_000, zero, 0, 255, True)
    z = n.requantize([n.conv(y, channels, (1, 1), zero=zero), "x"], [0, x_zero], 60_000, 9, 9, 255, False)
    z = n.requantize([z, y], [9, zero], 200, zero, 0, 255, False)
    _, selection, _ = run(n.graph(z), config, seed)
    assert [m.layer.residual for m in selection.matches.values()] == ["", "x", y]


@_settings
@given(configs, windows(st.sampled_from([1, 2, 3])), zeros, seeds)
def test_pools(config: Config, window: tuple, zero: int, seed: int) -> None:
    shape, kernel, strides, pads = window
    n = net(config, shape, seed)
    x = n.requantize([n.conv("x", shape[0], (1, 1), zero=1)], [0], 40_000, zero, 0, 255, False)
    high = n.pool(x, "max", kernel, strides, pads)
    low = n.requantize([n.pool(x, "sum", kernel, strides, (0,) * 4, zero)], [0], 500, 3, 0, 255, False) if (
        all(k <= d for k, d in zip(kernel, shape[1:], strict=True))
    ) else x  # fmt: skip
    run(n.graph(high, low), config, seed)


@_settings
@given(
    configs,
    st.sampled_from([(1, 1, 1), (70, 1, 1), (5, 3, 2), (40, 4, 4)]),
    st.sampled_from([1, 16, 100]),
    zeros,
    seeds,
)
def test_dense_layers_give_codes_and_sums(config: Config, shape: tuple, out: int, zero: int, seed: int) -> None:
    n = net(config, shape, seed)
    flat = n.node("relax.reshape", ["x"], (1, int(np.prod(shape))), "uint8", shape=(1, int(np.prod(shape))))
    hidden = n.requantize([n.dense(flat, 24, zero)], [0], 100_000, 0, 0, 255, True)
    _, selection, program = run(n.graph(n.dense(hidden, out)), config, seed)
    assert program.tensors[list(selection.matches)[-1]].planes == 4


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("config", [Q31, CONFIGS[2]], ids=["published buffers", "small buffers"])
def test_means_over_the_image(config: Config, size: int) -> None:
    n = net(config, (48, size, size), 0)
    wide = n.node("relax.astype", ["x"], (1, 48, size, size), "int32", dtype="int32")
    centred = n.node("relax.subtract", [wide, n.constant(np.int32(17))], (1, 48, size, size), "int32")
    sums = n.node("relax.sum", [centred], (1, 48, 1, 1), "int32", axes=(2, 3), keepdims=True)
    _, selection, _ = run(n.graph(n.requantize([sums], [0], 2000, 17, 0, 255, False)), config)
    (match,) = selection.matches.values()
    assert match.nodes >= {wide, centred, sums}


# --- what is not taken -----------------------------------------------------------------------------------------------


def reason(n: Net, config: Config, output: str, of: str) -> str:
    from dlc.targets.vta.select import select

    selection = select(n.graph(output), config)
    assert of not in selection.matches
    return selection.reasons[of]


def test_a_layer_that_is_too_large_is_declined_with_its_size() -> None:
    n = net(Q31, (16, 24, 24), 0)
    flat = n.node("relax.reshape", ["x"], (1, 16 * 24 * 24), "uint8", shape=(1, 16 * 24 * 24))
    y = n.dense(flat, 10)
    expected = "too large for the WGT buffer at its smallest tile: needs 147456 of 130816 bytes"
    assert reason(n, Q31, y, y) == expected


def test_what_the_requantiser_cannot_do_is_declined() -> None:
    n = net(Q31, (16, 4, 4), 0)
    y = n.requantize([n.conv("x", 16, (1, 1))], [0], 30_000, 0, 0, 255, False)
    assert "the multiplier" in reason(n, ORIGINAL, y, y)
    assert "is no power of two, and vta:original only shifts: use --arithmetic shift" in reason(n, ORIGINAL, y, y)

    n = net(ORIGINAL, (256, 4, 4), 0)
    y = n.requantize([n.conv("x", 16, (3, 3)), "x"][:1], [0], 2**32, 0, 0, 255, False)
    assert "before the shift, beyond 32 bits" in reason(n, ORIGINAL, y, y)


def test_sums_of_two_accumulators_and_of_three_terms_are_declined() -> None:
    n = net(Q31, (16, 4, 4), 0)
    a, b = (n.conv("x", 16, (1, 1)) for _ in range(2))
    y = n.requantize([a, b], [0, 0], 30_000, 0, 0, 255, False)
    assert reason(n, Q31, y, y) == "it adds two sums that were not requantised before"


def test_conflicting_padding_is_declined() -> None:
    n = net(Q31, (16, 6, 6), 0)
    y = n.requantize([n.conv("x", 16, (3, 3), pads=(1,) * 4, zero=7)], [0], 30_000, 0, 0, 255, False)
    pooled = n.pool("x", "max", (3, 3), (2, 2), (1,) * 4)
    text = "its padding must hold the code 0, and another reader of its input needs 7 there"
    from dlc.targets.vta.select import select

    assert select(n.graph(y, pooled), Q31).reasons[pooled] == text


def test_layers_divided_by_host_work_stay_on_the_host() -> None:
    """The residual of a convolution is computed by the host from what the accelerator made before."""
    n = net(Q31, (16, 6, 6), 0)
    y = n.requantize([n.conv("x", 16, (3, 3), pads=(1,) * 4)], [0], 30_000, 0, 0, 255, False)
    table = n.node("dlc.table", [y, n.constant(np.arange(256)[::-1].astype(np.uint8))], n.values[y].shape, "uint8")
    z = n.requantize([n.conv(y, 16, (1, 1)), table], [0, 0], 30_000, 0, 0, 255, False)
    from dlc.targets.vta.select import select

    selection = select(n.graph(z), Q31)
    assert next(iter(selection.matches)) == y
    assert z not in selection.matches
