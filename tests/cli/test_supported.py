"""``dlc inspect --supported``: the table, the reasons, what is not supported; and that compiling does what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

import dlc
from dlc.cli.main import main
from dlc.explain import read
from dlc.zoo import model_path
from dlc.zoo.vision.data import load_inputs

HOST = """<ir_version: 10, opset_import: ["": 26]>
g (float[2, 2] x, bool take) => (float[2, 2] y, float d) {
    a = Relu (x)
    two = Constant <value_float: float = 2.0> ()
    y = If (take) <then_branch: graph = t () => (float[2, 2] p) { p = Mul (a, two) },
                   else_branch: graph = e () => (float[2, 2] q) {
        bits = BitCast <to: int = 6> (a)
        q = BitCast <to: int = 1> (bits) }>
    d = Det (a)
}"""


def inspect(path: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["inspect", str(path), "--supported", *options])


def cells(text: str) -> dict[str, list[str]]:
    """The rows of the printed table by operator: nodes, cpu, gpu, multi, reference, vta."""
    rows = [[c.strip() for c in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]
    return {row[0]: row[1:] for row in rows}


@pytest.fixture
def host_model(tmp_path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(HOST), tmp_path / "host.onnx")
    return tmp_path / "host.onnx"


def test_the_places_of_every_operator_and_why(host_model: Path) -> None:
    result = inspect(host_model)
    assert result.exit_code == 0, result.output
    assert "host.onnx: every node is supported" in result.stdout
    assert cells(result.stdout) == {
        "BitCast": ["2", "host", "host", "host", "numpy", "host"],
        "Constant": ["1", *["folded"] * 5],
        "Det": ["1", "host", "host", "host", "numpy", "host"],
        "If": ["1", "host", "host", "host", "numpy", "host"],
        "Mul": ["1", "kernel", "kernel", "kernel", "numpy", "cpu"],
        "Relu": ["1", "kernel", "kernel", "kernel", "numpy", "cpu"],
    }
    lines = result.stdout.splitlines()
    assert "host (cpu, multi, vta): Det 'd': target cpu has no kernel for dlc.determinant" in lines
    assert "host (gpu): Det 'd': target gpu has no kernel for dlc.determinant" in lines
    assert "  folded  computed when compiling, or part of other nodes" in lines
    assert max(map(len, lines[1:])) <= 100


def test_it_says_what_compiling_does(host_model: Path) -> None:
    found = json.loads(inspect(host_model, "--json").stdout)
    said = {row["operator"] for row in found["operators"] if (row["places"].get("cpu") or {}).get("host")}
    rows = read(dlc.compile(host_model, target="cpu")).nodes
    assert said == {row["node"].split()[0] for row in rows if row["part"] == "host"}


def test_an_element_type_that_a_target_lacks(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["": 20]> g (float16[4] x) => (float16[4] y) { y = Relu (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "half.onnx")
    result = inspect(tmp_path / "half.onnx")
    assert cells(result.stdout)["Relu"] == ["1", "kernel", "none", "kernel", "numpy", "cpu"]
    assert "none (gpu): Relu 'y': elements of float16" in result.stdout.splitlines()


def test_quantised_for_the_accelerator(tmp_path: Path) -> None:
    samples = {"image": load_inputs("calibration")[0][:8]}
    np.savez(tmp_path / "c.npz", **samples)
    options = ("--quantize", "int8", "--calibration", str(tmp_path / "c.npz"))
    result = inspect(model_path("vision"), *options, "--arithmetic", "fixed")
    assert cells(result.stdout)["Conv"][-1].startswith("array"), result.output
    assert "array   a layer of the accelerator" in result.stdout


def test_all_unsupported_nodes_at_once(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 20, "acme": 1]>
    g (float[2] x, bool take) => (float[2] y) {
        a = Relu (x)
        b = acme.Magic (a)
        y = If (take) <then_branch: graph = t () => (float[2] p) { p = acme.Magic (b) },
                       else_branch: graph = e () => (float[2] q) { q = acme.Trick (b) }>
    }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "odd.onnx")
    result = inspect(tmp_path / "odd.onnx")
    assert result.exit_code == 1
    assert "odd.onnx: 3 nodes not supported" in result.stdout
    assert cells(result.stdout)["acme.Magic"] == ["2", *["no"] * 5]
    assert cells(result.stdout)["Relu"] == ["1", *["?"] * 5]
    lines = result.stdout.splitlines()
    assert "not supported: Magic of domain 'acme' in 'b', 'y/then_branch/p'" in lines
    assert "not supported: Trick of domain 'acme' in 'y/else_branch/q'" in lines
    assert json.loads(inspect(tmp_path / "odd.onnx", "--json").stdout)["unsupported"] == [
        {"operator": "Magic", "domain": "acme", "nodes": ["b", "y/then_branch/p"]},
        {"operator": "Trick", "domain": "acme", "nodes": ["y/else_branch/q"]},
    ]
