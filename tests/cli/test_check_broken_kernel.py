"""`dlc check --per-node` finds the kernel that is wrong: one weight of one layer is broken on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import dlc
from dlc.cli.main import main
from dlc.targets.cpu.contraction_region import ContractionRegion


def test_the_first_node_that_differs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = ContractionRegion.packed_weight

    def broken(self: ContractionRegion, schedule: Any) -> np.ndarray:
        packed = honest(self, schedule)
        if self.constants[self.w].shape == (48, 16, 3, 3):  # the first convolution of the second block
            packed = packed.copy()
            packed[: packed.size // 8] *= -1
        return packed

    monkeypatch.setattr(ContractionRegion, "packed_weight", broken)
    dlc.compile("zoo:vision").save(tmp_path / "broken.dlc")
    command = ["check", str(tmp_path / "broken.dlc"), "--against", "zoo:vision", "--per-node"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    (line,) = [text for text in result.output.splitlines() if "first" in text]
    assert "/blocks/blocks.1/Relu" in line
    monkeypatch.undo()
    dlc.compile("zoo:vision").save(tmp_path / "right.dlc")
    result = CliRunner().invoke(main, ["check", str(tmp_path / "right.dlc"), "--against", "zoo:vision", "--per-node"])
    assert result.exit_code == 0, result.output
