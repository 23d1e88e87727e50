"""Several levels in one package: each gives the same, the best of the machine is taken, equal constants lie once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc import hardware
from dlc.cli.main import main
from dlc.errors import DlcError
from dlc.explain import read
from dlc.package import Package, read_manifest
from dlc.targets.base import Variant, joined
from dlc.targets.cpu.isa import PORTABLE
from tests.loops import loop_model, op

LEVELS = ["amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2"]
HERE = [isa.name for isa in PORTABLE if isa.requires <= hardware.this_machine().features]
RNG = np.random.default_rng(61)
# Of tokens in one-hot form: scores 1 for the next token, and 0.25 for the one before.
STREAMED = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 3, time] x) => (float[1, 3, time] y)
  <float[3, 3, 2] w = {0, 0, 0, 0, 0.25, 1, 0.25, 1, 0, 0, 0, 0, 0, 0, 0.25, 1, 0, 0}> {
    a = Conv <kernel_shape = [2], pads = [1, 0]> (x, w)
    y = Relu (a)
}"""

pytestmark = pytest.mark.skipif(not HERE, reason="no x86-64 processor with AVX2")


def network() -> onnx.ModelProto:
    """Convolution, rectifier, mean, classes; the classes' weights are large enough to be a member of their own."""
    arrays = {"w": RNG.standard_normal((70, 3, 3, 3)), "b": RNG.standard_normal(70), "v": RNG.standard_normal((70, 40))}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 9, 11])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 40])
    weights = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    return helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )


def classifier(scale: float, width: int = 4) -> onnx.ModelProto:
    weight = numpy_helper.from_array((np.eye(width) * scale).astype(np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return network()


@pytest.fixture(scope="module")
def integers(model: onnx.ModelProto) -> Package:
    return dlc.compile(model, "cpu:portable", "int8", "random")


def machine(monkeypatch: pytest.MonkeyPatch, features: frozenset[str], arch: str = "x86_64") -> None:
    made = hardware.Machine(arch, "made up", features, 1, 1, 1, 1)
    monkeypatch.setattr(hardware, "this_machine", lambda: made)


def at_each_level(
    monkeypatch: pytest.MonkeyPatch, package: Package, inputs: Mapping[str, np.ndarray]
) -> dict[str, list[np.ndarray]]:
    results = {}
    for level in HERE:
        monkeypatch.setenv("DLC_LEVEL", level)
        results[level] = list(dlc.load(package).run(inputs).values())
    return results


# --- which level -----------------------------------------------------------------------------------------------------


def test_every_level_gives_the_same_integers(
    monkeypatch: pytest.MonkeyPatch, model: onnx.ModelProto, integers: Package
) -> None:
    x = RNG.standard_normal((3, 3, 9, 11)).astype(np.float32)
    (wanted,) = dlc.load(dlc.compile(model, "reference", "int8", "random")).run({"x": x}).values()
    for level, (result,) in at_each_level(monkeypatch, integers, {"x": x}).items():
        np.testing.assert_array_equal(result, wanted, err_msg=level)


def test_the_best_level_that_the_machine_offers_is_taken(monkeypatch: pytest.MonkeyPatch, integers: Package) -> None:
    assert dlc.load(integers).package.name == f"<package>: {HERE[0]}"
    for isa in PORTABLE:
        machine(monkeypatch, isa.requires | {"sse2"})
        assert integers.chosen().manifest["build"]["isa"] == isa.name


def test_a_level_whose_tiles_linux_withholds_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = PORTABLE[0].requires
    monkeypatch.setattr(hardware, "_read_cpuinfo", lambda: ("made up", flags))
    for granted, wanted in ((True, flags), (False, PORTABLE[1].requires)):
        monkeypatch.setattr(hardware, "request_amx", lambda granted=granted: granted)
        assert hardware.this_machine.__wrapped__().features == wanted


def test_a_machine_with_none_of_the_levels(monkeypatch: pytest.MonkeyPatch, integers: Package) -> None:
    machine(monkeypatch, frozenset({"sse2", "fma", "bmi2"}))
    text = r"<package>: this machine's CPU lacks features that the package needs: avx2, f16c \(variant avx2\)"
    with pytest.raises(DlcError, match=text):
        dlc.load(integers)
    machine(monkeypatch, frozenset({"asimd"}), "aarch64")
    with pytest.raises(DlcError, match="the package is for x86_64 processors, and this machine is aarch64"):
        dlc.load(integers)


def test_an_impossible_level(monkeypatch: pytest.MonkeyPatch, model: onnx.ModelProto, integers: Package) -> None:
    monkeypatch.setenv("DLC_LEVEL", "avx3")
    text = "<package>: DLC_LEVEL is avx3, and the package has code for amx, avx512_bf16, avx512_vnni, avx512, avx2"
    with pytest.raises(DlcError, match=text):
        dlc.load(integers)
    dlc.load(dlc.compile(classifier(1.0)))  # of one level: there is nothing to choose
    monkeypatch.setenv("DLC_LEVEL", "amx")
    machine(monkeypatch, PORTABLE[1].requires)
    text = r"needs: amx_int8, amx_tile \(variant amx\), or Linux withholds them from this process"
    with pytest.raises(DlcError, match=text):
        dlc.load(integers)


def test_joined_variants_keep_their_order() -> None:
    first = (Variant("amx", "x86_64", ("tiles", "v")), Variant("avx2", "x86_64", ("v",)))
    assert [v.name for v in joined([first, first])] == ["amx", "avx2"]
    mixed = joined([first, (Variant("sse2", "x86_64", ("s",)),), ()])
    assert [(v.name, v.requires) for v in mixed] == [("amx+sse2", ("s", "tiles", "v")), ("avx2+sse2", ("s", "v"))]
    assert joined([(), ()]) == ()


# --- the package -----------------------------------------------------------------------------------------------------


def test_what_is_the_same_in_several_levels_is_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "p.dlc"
    package = dlc.compile(classifier(1.0, 64), "cpu:portable")
    package.save(path)
    table = read_manifest(path)["members"]
    weights = {name: record for name, record in table.items() if record["size"] > 64 * 64 * 4}
    assert {name.partition("/")[0] for name in weights} >= set(LEVELS)
    wide = {table[f"{level}/constants1.safetensors"]["sha256"] for level in LEVELS[1:3]}
    assert len(wide) == 1  # both have vectors of 512 bits
    assert path.stat().st_size < sum(record["size"] for record in table.values()) - 64 * 64 * 4
    session = dlc.load(path)
    assert session.package.name == f"{path}: {HERE[0]}"
    x = RNG.integers(-4, 4, (2, 64)).astype(np.float32)
    np.testing.assert_array_equal(session.run({"x": x})["y"], x)


def test_a_model_without_kernels_runs_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    text = '<ir_version: 8, opset_import: ["" : 18]> g (string[n] x) => (string[n] y) { y = Identity (x) }'
    package = dlc.compile(onnx.parser.parse_model(text), "cpu:portable")
    machine(monkeypatch, frozenset())
    words = np.array(["a", "b"], object)
    assert list(dlc.load(package).run({"x": words})["y"]) == ["a", "b"]


# --- with all else ---------------------------------------------------------------------------------------------------


def test_streams_and_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    package = dlc.compile(onnx.parser.parse_model(STREAMED), "cpu:portable", stream=True)
    x = np.arange(21, dtype=np.float32).reshape(1, 3, 7)
    for level in HERE:
        monkeypatch.setenv("DLC_LEVEL", level)
        session = dlc.load(package)
        stream = session.stream()
        parts = [stream.run({"x": piece})["y"] for piece in np.split(x, [2, 5], 2)]
        np.testing.assert_array_equal(np.concatenate(parts, 2), session.run({"x": x})["y"])
        assert session.generate([[0]], 4).tolist() == [[1, 2, 0, 1]]


@pytest.mark.parametrize("host", [False, True])
def test_control_flow(monkeypatch: pytest.MonkeyPatch, host: bool) -> None:
    body = [op("Add", "s x", "new")]
    if host:  # what has no kernel
        body = [op("Det", "square", "d"), op("Add", "s d", "t"), op("Add", "t x", "new")]
    model = loop_model(body, {"s": "new"}, constants={"square": np.eye(2, dtype=np.float32)} if host else None)
    package = dlc.compile(model, "cpu:portable")
    s, x = (RNG.integers(-9, 9, (3, 4)).astype(np.float32) for _ in range(2))
    for level, (result,) in at_each_level(monkeypatch, package, {"s_0": s, "x": x}).items():
        np.testing.assert_array_equal(result, s + 5 * (x + host), err_msg=level)


def test_shapes_and_a_cascade(monkeypatch: pytest.MonkeyPatch) -> None:
    package = dlc.compile(
        classifier(0.1), "cpu:portable", shapes={"x": [(1, 4), (3, 4)]}, cascade=classifier(10.0), threshold=0.5
    )
    assert [v["name"] for v in package.manifest["variants"]] == LEVELS
    assert "large: variant1 x=[3,4]: avx2" in {row.get("part") for row in read(package).nodes}
    for rows in (1, 3, 5):
        x = RNG.integers(-2, 3, (rows, 4)).astype(np.float32)
        for level, (result,) in at_each_level(monkeypatch, package, {"x": x}).items():
            np.testing.assert_allclose(result, x * 10, err_msg=level)


def test_parts_of_a_model_are_for_one_level() -> None:
    text = "target cpu:portable is for whole models, and a part is for one level: cpu:amx, cpu:avx512_bf16, "
    with pytest.raises(DlcError, match=text):
        dlc.compile(classifier(1.0), "multi:1xcpu:portable")


# --- the command line ------------------------------------------------------------------------------------------------


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_the_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = tmp_path / "m.onnx", tmp_path / "m.dlc"
    onnx.save(onnx.parser.parse_model(STREAMED), model)
    made = run("compile", model, "-o", out, "--target", "cpu:portable", "--stream")
    assert made.exit_code == 0 and "target cpu:portable" in made.output, made.output
    monkeypatch.setenv("DLC_LEVEL", "avx2")
    size = ["--shape", "x=1,3,8"]
    for verb in (
        ["check", "--against", model, "--per-node", *size],
        ["bench", "--iterations", 3, *size],
        ["run", "--random", *size],
    ):
        result = run(verb[0], out, *verb[1:])
        assert result.exit_code == 0, result.output
    found = json.loads(run("inspect", out, "--json").output)
    assert [text.partition(" ")[0] for text in found["variants"]] == LEVELS
    every = json.loads(run("explain", out, "--json").output)["nodes"]
    assert {row["part"] for row in every} == set(LEVELS)
    one = json.loads(run("explain", out, "--level", "avx2", "--json").output)["nodes"]
    assert [{**row, "part": "avx2"} for row in one] == [row for row in every if row["part"] == "avx2"]
    assert run("explain", out, "--level", "avx2", "--stream").exit_code == 0


def test_explain_says_how_to_ask(tmp_path: Path) -> None:
    out, plain = tmp_path / "p.dlc", tmp_path / "m.dlc"
    dlc.compile(classifier(1.0), "cpu:portable").save(out)
    dlc.compile(classifier(1.0)).save(plain)
    for arguments, text in (
        ([out, "--stream"], "say of which level, by --level: amx, avx512_bf16, avx512_vnni, avx512, avx2"),
        (
            [out, "--level", "sse2"],
            "there is no level 'sse2'; the package has amx, avx512_bf16, avx512_vnni, avx512, avx2",
        ),
        ([plain, "--level", "avx2"], "there is no level 'avx2'; the package has no levels"),
    ):
        result = run("explain", *arguments)
        assert result.exit_code == 2 and text in result.output


def test_the_targets_say_it() -> None:
    assert "portable: amx, avx512_bf16, avx512_vnni, avx512, avx2" in run("targets", "cpu").output
