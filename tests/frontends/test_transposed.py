"""Transposed convolutions: what every input adds to its places, added up."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import dlc
from tests.frontends.build import model, node

CASES: list[dict[str, Any]] = [
    {"strides": [2, 2], "kernel": (2, 2)},
    {"strides": [2, 2], "kernel": (3, 3), "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    {"strides": [3, 1], "kernel": (2, 4), "pads": [0, 2, 1, 0], "output_padding": [2, 0]},
    {"strides": [1, 4], "kernel": (1, 1), "output_padding": [0, 3]},
    {"strides": [2, 2], "kernel": (3, 2), "dilations": [2, 1]},
    {"strides": [2], "kernel": (5,), "pads": [4, 0]},
    {"strides": [2, 1, 2], "kernel": (2, 3, 4), "pads": [0, 1, 1, 1, 0, 2]},
]


def _wanted(x: np.ndarray, w: np.ndarray, bias: np.ndarray, case: dict[str, Any], groups: int) -> np.ndarray:
    rank, strides = w.ndim - 2, case["strides"]
    dilations, extra = case.get("dilations", [1] * rank), case.get("output_padding", [0] * rank)
    pads = case.get("pads", [0] * 2 * rank)
    outputs, kernel, extents = w.shape[1], w.shape[2:], x.shape[2:]
    sizes = [
        (n - 1) * s + (k - 1) * d + 1 + e
        for n, s, k, d, e in zip(extents, strides, kernel, dilations, extra, strict=True)
    ]
    full = np.zeros((x.shape[0], groups * outputs, *sizes))
    depth = x.shape[1] // groups
    for group, tap in itertools.product(range(groups), np.ndindex(*kernel)):
        part = slice(group * depth, (group + 1) * depth)
        places = zip(tap, dilations, extents, strides, strict=True)
        where = tuple(slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in places)
        added = np.einsum("nc...,co->no...", x[:, part], w[part][(slice(None), slice(None), *tap)])
        full[(slice(None), slice(group * outputs, (group + 1) * outputs), *where)] += added
    kept = tuple(slice(b, n - e) for b, e, n in zip(pads[:rank], pads[rank:], sizes, strict=True))
    return full[(slice(None), slice(None), *kept)] + bias.reshape(-1, *[1] * rank)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(("target", "groups"), [("reference", 1), ("reference", 2), ("cpu", 1)])
def test_of_strides(case: dict[str, Any], symbolic: bool, target: str, groups: int) -> None:
    rng, rank = np.random.default_rng(0), len(case["kernel"])
    shape = (2, 2 * groups, *(4, 5, 3)[:rank])
    w = rng.standard_normal((2 * groups, 3, *case["kernel"])).astype(np.float32)
    bias = rng.standard_normal(3 * groups).astype(np.float32)
    attrs = {key: value for key, value in case.items() if key != "kernel"}
    given = ["n", 2 * groups, *"hwd"[:rank]] if symbolic else list(shape)
    nodes = [node("ConvTranspose", ["x", "w", "b"], ["y"], group=groups, **attrs)]
    package = dlc.compile(model(nodes, {"x": given}, ["y"], {"w": w, "b": bias}), target)
    x = rng.standard_normal(shape).astype(np.float32)
    np.testing.assert_allclose(
        dlc.load(package).run({"x": x})["y"], _wanted(x, w, bias, case, groups), rtol=1e-4, atol=1e-5
    )
