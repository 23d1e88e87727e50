"""``dlc zoo train NAME --quick`` of every family, on its real data, as a user runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from dlc import zoo as models
from dlc.cli.zoo import zoo

pytest.importorskip("torch", reason="torch is not installed: pip install 'dlc[zoo]'")


@pytest.mark.slow
@pytest.mark.timeout(600)  # the speech is synthesised where no training has done so
@pytest.mark.parametrize("name", models.FAMILIES)
def test_quick_training_learns(name: str, tmp_path: Path) -> None:
    runner = CliRunner()
    fetched = runner.invoke(zoo, ["fetch", name])
    if fetched.exit_code:
        pytest.skip(f"the data of {name} cannot be fetched here: {fetched.output or fetched.exception}")
    out = tmp_path / "model.onnx"
    trained = runner.invoke(zoo, ["train", name, "--quick", "--out", str(out)])
    assert trained.exit_code == 0, trained.output
    assert out.is_file()
    losses = [float(loss) for loss in re.findall(r"epoch \d+/\d+: loss ([\d.]+)", trained.output)]
    if name != "ngram":  # which counts
        assert len(losses) >= 2 and losses[-1] < losses[0]
