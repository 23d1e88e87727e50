"""Measured speeds: written, read, for this machine alone, and what a damaged file of them does."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import dlc
from dlc import hardware
from dlc.cache_key import compile_key
from dlc.cli.main import main
from dlc.errors import DlcError
from dlc.hardware import Speeds, load_speeds, measured_machine, save_speeds, speeds_path, this_machine
from dlc.options import Options
from dlc.targets.base import find_target
from dlc.targets.cpu import speeds as measuring
from dlc.targets.cpu.isa import X86_LEVELS, levels_of
from dlc.targets.cpu.kernels.contract_cost import core_of, seconds
from dlc.zoo.graphs import Graph, info

SPEEDS = Speeds(2e9, (2e11, 8e10, 2e10, 8e9), 9 << 20, {"avx512": 48e9, "avx2": 24e9}, {"avx512": 96e9, "avx2": 48e9})
AVX512 = next(isa for isa in X86_LEVELS if isa.name == "avx512")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of the test's own; gives the file of speeds, which does not exist yet."""
    monkeypatch.setenv("DLC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "machine.json"


def _model() -> onnx.ModelProto:
    net = Graph({})
    net.op("MatMul", ["x", net.constant("w", np.ones((8, 8), np.float32))], ["y"])
    ends = [[info(name, onnx.TensorProto.FLOAT, [4, 8])] for name in ("x", "y")]
    return net.model("net", *ends)


def test_written_and_read(place: Path) -> None:
    machine = this_machine()
    assert load_speeds(machine) is None and measured_machine() == machine
    assert save_speeds(machine, SPEEDS) == place == speeds_path()
    assert load_speeds(machine) == SPEEDS
    assert measured_machine() == replace(machine, speeds=SPEEDS, l3=9 << 20)
    assert this_machine() == machine and machine.speeds is None


def test_a_measured_machine_is_a_key() -> None:
    """What is chosen for a machine is remembered by it."""
    faster = replace(SPEEDS, multiply_adds={"avx512": 64e9, "avx2": 24e9})
    chosen = {replace(this_machine(), speeds=SPEEDS): 1}
    assert chosen[replace(this_machine(), speeds=replace(SPEEDS))] == 1
    assert replace(this_machine(), speeds=faster) not in chosen


@pytest.mark.parametrize("change", [{"model": "another"}, {"l2": 1}, {"features": frozenset({"sse2"})}])
def test_of_another_machine(place: Path, change: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    save_speeds(replace(this_machine(), **change), SPEEDS)
    assert load_speeds(this_machine()) is None and measured_machine() == this_machine()
    assert not caplog.records


def test_of_another_format(place: Path) -> None:
    save_speeds(this_machine(), SPEEDS)
    place.write_text(json.dumps({**json.loads(place.read_text()), "format": 99}))
    assert load_speeds(this_machine()) is None


@pytest.mark.parametrize(
    "change",
    [
        {"hertz": 0},
        {"hertz": "fast"},
        {"hertz": True},
        {"bandwidth": [1, 2, 3]},
        {"bandwidth": [1, 2, 3, -4]},
        {"l3": None},
        {"multiply_adds": [1]},
        {"multiply_adds": {}},
        {"integer_multiply_adds": {"avx2": float("inf")}},
    ],
)
def test_damaged(place: Path, change: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    save_speeds(this_machine(), SPEEDS)
    record = json.loads(place.read_text())
    record["speeds"].update(change)
    place.write_text(json.dumps(record))
    _is_damaged(place, caplog)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"format": 1}', "\x00"])
def test_no_record(place: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    place.parent.mkdir()
    place.write_text(text)
    _is_damaged(place, caplog)


def _is_damaged(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The reader says so; compiling warns and goes on; doctor shows it."""
    with pytest.raises(DlcError, match=r"machine.json is damaged; `dlc doctor --measure` writes it anew"):
        load_speeds(this_machine())
    with caplog.at_level(logging.WARNING, "dlc"):
        assert measured_machine() == this_machine()
    assert [r.getMessage() for r in caplog.records] == [
        f"{place} is damaged; `dlc doctor --measure` writes it anew; going on without measured speeds"
    ]
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0 and "speeds: not measured on this machine" in result.stdout
    assert f"missing: measured speeds: {place} is damaged" in result.stdout


def test_cannot_be_read_or_written(place: Path) -> None:
    place.mkdir(parents=True)
    with pytest.raises(DlcError, match=r"cannot read .*machine.json: Is a directory"):
        load_speeds(this_machine())
    with pytest.raises(DlcError, match=r"machine.json"):
        save_speeds(this_machine(), SPEEDS)
    place.rmdir()
    place.parent.rmdir()
    place.parent.write_text("a file")
    with pytest.raises(DlcError, match=r"cannot write .*machine.json"):
        save_speeds(this_machine(), SPEEDS)


def test_the_compile_key_takes_account(place: Path) -> None:
    def key() -> str:
        return compile_key(_model(), Options(), None, find_target("cpu"))

    before = key()
    save_speeds(this_machine(), SPEEDS)
    measured = key()
    save_speeds(this_machine(), replace(SPEEDS, hertz=3e9))
    assert len({before, measured, key()}) == 3
    save_speeds(this_machine(), SPEEDS)
    assert key() == measured
    save_speeds(replace(this_machine(), model="another"), SPEEDS)
    assert key() == before


def test_the_cost_model_uses_them() -> None:
    machine = replace(this_machine(), speeds=SPEEDS)
    core = core_of(AVX512, machine)
    assert core.multiplies == 48e9 / 2e9 / 16 and core.bandwidth[1:] == (40.0, 10.0, 4.0)
    assert seconds(2e9, machine) == 1.0
    # What was not measured is as usual.
    unknown = replace(SPEEDS, multiply_adds={})
    assert core_of(AVX512, replace(machine, speeds=unknown)).multiplies == core_of(AVX512, this_machine()).multiplies


def test_packages_are_a_function_of_the_file(place: Path, tmp_path: Path) -> None:
    save_speeds(this_machine(), SPEEDS)
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    packages = [dlc.compile(_model(), cache=False) for _ in range(2)]
    for number, package in enumerate(packages):
        package.save(tmp_path / str(number))
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()
    np.testing.assert_allclose(dlc.load(packages[0]).run({"x": x})["y"], x @ np.ones((8, 8), np.float32), rtol=1e-5)


@pytest.mark.parametrize("quantize", ["none", "int8-dynamic", "int4"])
def test_every_kind_of_kernel_is_chosen_by_measured_speeds(place: Path, quantize: str) -> None:
    save_speeds(this_machine(), SPEEDS)
    net, rng = Graph({}), np.random.default_rng(0)

    def weight(name: str, *shape: int) -> str:
        return net.constant(name, rng.standard_normal(shape).astype(np.float32))

    scores = net.op("MatMul", ["x", net.op("Transpose", ["x"], perm=[1, 0])])
    mixed = net.op("MatMul", [net.op("Softmax", [scores], axis=1), "x"])
    wide = net.op("MatMul", [mixed, weight("w", 256, 256)])
    image = net.op("Reshape", [wide, net.integers(1, 4, 64, 64)])
    convolved = net.op("Conv", [image, weight("k", 8, 4, 3, 3)], pads=[1, 1, 1, 1])
    pooled = net.op("AveragePool", [convolved], kernel_shape=[2, 2], strides=[2, 2])
    net.op("Conv", [pooled, weight("d", 8, 1, 3, 3)], ["y"], group=8)
    ends = [info("x", onnx.TensorProto.FLOAT, [64, 256])], [info("y", onnx.TensorProto.FLOAT, [1, 8, 30, 30])]
    proto = net.model("net", *ends)
    package = dlc.compile(proto, quantize=quantize)
    x = rng.standard_normal((64, 256)).astype(np.float32)
    wanted = dlc.load(dlc.compile(proto, target="reference")).run({"x": x})["y"]
    noise = np.square(dlc.load(package).run({"x": x})["y"] - wanted).sum() / np.square(wanted).sum()
    assert noise < (1e-9 if quantize == "none" else 0.02)


def test_measured(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found is possible, and `dlc doctor --measure` keeps and shows it."""
    monkeypatch.setattr(measuring, "_ROUNDS", 1)
    monkeypatch.setattr(measuring, "_SECONDS", 1e-4)
    monkeypatch.setattr(measuring, "_MOST_MEMORY", 1)
    result = CliRunner().invoke(main, ["doctor", "--measure", "--json"])
    assert result.exit_code == 0, result.output
    machine, found = this_machine(), load_speeds(this_machine())
    assert found is not None and json.loads(result.stdout)["speeds"]["hertz"] == found.hertz
    levels = [isa.name for isa in levels_of(machine)]
    assert list(found.multiply_adds) == list(found.integer_multiply_adds) == levels
    assert found.hertz > 0 and machine.l2 < found.l3 <= machine.l3
    assert min(found.bandwidth) > 0
    text = CliRunner().invoke(main, ["doctor"]).stdout
    assert f"speeds: {place}" in text and "read from memory" in text and f"multiply-adds, {levels[0]}" in text


def test_how_much_of_a_shared_cache_is_ours() -> None:
    reads = [(2, 20.0), (4, 19.0), (8, 12.0), (16, 9.0)]
    assert measuring._effective(reads, 8.0, 32) == 4
    assert measuring._effective(reads[:2], 8.0, 32) == 32
    assert measuring._effective([(2, 8.0)], 8.0, 32) == 32


def test_doctor_cannot_write(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir(parents=True)
    monkeypatch.setattr(measuring, "measure_speeds", lambda *_: SPEEDS)
    result = CliRunner().invoke(main, ["doctor", "--measure"])
    assert result.exit_code == 2 and result.stdout == "" and "machine.json" in result.stderr
    assert hardware.this_machine().speeds is None
