"""Several shapes in one package: code for each, general code for the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import dlc
from dlc.cli.main import main
from dlc.errors import DlcError
from dlc.explain import read
from dlc.runtime.variants import VariantsExecutable
from dlc.variants import compile_variants

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 2, height, width] x, float[2] b) => (float[1, 2, height, width] y) {
    z = Relu (x)
    axes = Constant <value_ints = [0, 2, 3]> ()
    c = Unsqueeze (b, axes)
    y = Add (z, c)
}"""
SHAPES = [(1, 2, 4, 4), (1, 2, 6, 8)]


def run(session: Any, height: int, width: int) -> None:
    rng = np.random.default_rng(height)
    x, b = rng.standard_normal((1, 2, height, width)).astype(np.float32), np.array([1, 2], np.float32)
    wanted = np.maximum(x, 0) + b[None, :, None, None]
    np.testing.assert_array_equal(session.run({"x": x, "b": b})["y"].reshape(wanted.shape), wanted)


@pytest.mark.parametrize("target", ["reference", "cpu"])
def test_a_shape_runs_its_own_code_and_others_the_general_one(target: str) -> None:
    package = dlc.compile(onnx.parser.parse_model(TEXT), target, shapes={"x": SHAPES})
    session = dlc.load(package)
    for height, width in ((4, 4), (6, 8), (5, 3)):
        run(session, height, width)
    executable = session.executable
    assert isinstance(executable, VariantsExecutable) and executable.general is not None
    assert list(executable.sessions) == [((1, 2, 4, 4), (2,)), ((1, 2, 6, 8), (2,))]
    parts = {row["part"] for row in read(package).nodes}
    assert parts == {
        "variant0 x=[1,2,4,4], b=[2]", "variant1 x=[1,2,6,8], b=[2]", "general x=[1,2,size0,size1], b=[2]",
    }  # fmt: skip


def test_without_general_code_other_shapes_are_refused() -> None:
    model = onnx.parser.parse_model(TEXT)

    def one(shapes: Any) -> Any:
        if any(isinstance(d, str) for d in shapes["x"]):
            raise DlcError("node Relu 'z': not for every size")
        return dlc.compile(model, "reference", shapes=shapes)

    package = compile_variants({"x": SHAPES}, one)
    session = dlc.load(package)
    run(session, 4, 4)
    run(session, 6, 8)
    (declined,) = [d["reason"] for d in read(package).declined if d["pass"] == "variants"]
    assert declined == "there is no general code: node Relu 'z': not for every size"
    with pytest.raises(DlcError, match=r"the package has no code for inputs of \[\[1, 2, 3, 3\], \[2\]\], only for"):
        run(session, 3, 3)


def test_from_the_command_line(tmp_path: Path) -> None:
    model, out = tmp_path / "m.onnx", tmp_path / "m.dlc"
    onnx.save(onnx.parser.parse_model(TEXT), model)
    given = ["--shape", "x=1,2,4,4", "--shape", "x=1,2,6,8"]
    result = CliRunner().invoke(main, ["compile", str(model), "-o", str(out), "--target", "reference", *given])
    assert result.exit_code == 0, result.output
    run(dlc.load(out), 6, 8)
    result = CliRunner().invoke(main, ["run", str(out), "--random", *given, "-o", str(tmp_path / "o.npz")])
    assert result.exit_code == 2
    assert "--shape: input 'x' is given twice" in result.output


def test_variants_must_fit_each_other() -> None:
    model = onnx.parser.parse_model(TEXT)
    with pytest.raises(DlcError, match=r"every input with several shapes needs as many of them: \{'x': 2, 'b': 1\}"):
        dlc.compile(model, "reference", shapes={"x": SHAPES, "b": [(2,)]})
    with pytest.raises(DlcError, match=r"input 'x': a variant's shape must be numbers, got \(1, 2, 'h', 4\)"):
        dlc.compile(model, "reference", shapes={"x": [SHAPES[0], (1, 2, "h", 4)]})  # type: ignore[list-item]
