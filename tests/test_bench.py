"""bench/cpu.py: its rows can be made, and its verdicts say what they are to say. Nothing here is timed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "bench"), *sys.path])
    return importlib.import_module("cpu")


@pytest.mark.parametrize("row", ["gemm32", "gemv4096", "mobilenet", "encoder", "ragged"])
def test_rows_make_models_that_onnx_accepts(cpu: ModuleType, row: str) -> None:
    cases = cpu.ROWS[row].cases()
    assert len(cases) == (50 if row == "ragged" else 1)
    onnx.checker.check_model(next(iter(cases.values())).make(), full_check=True)


def test_every_light_and_every_packaged_model_is_a_case(cpu: ModuleType) -> None:
    assert set(cpu.ROWS["models"].cases()) == {*cpu.LIGHT, *cpu.FEEDS, "basic-pitch", "magika"}


@pytest.mark.parametrize(
    ("ratios", "said"),
    [([1.2] * 9, "met"), ([0.96] * 9, "met"), ([0.9] * 9, "missed"), ([0.9, 1.0, 1.1] * 3, "not distinguishable")],
)
def test_a_row_is_met_when_its_whole_interval_is(cpu: ModuleType, ratios: list[float], said: str) -> None:
    assert cpu.verdict(np.array(ratios), 1.0).endswith(f"bar 1.0: {said}")


def test_the_best_peer_counts(cpu: ModuleType) -> None:
    times = {"dlc": np.full(3, 2.0), "slow": np.full(3, 9.0), "quick": np.full(3, 3.0)}
    best, ratios = cpu.ratios(times)
    assert best == "quick" and ratios.tolist() == [1.5] * 3
