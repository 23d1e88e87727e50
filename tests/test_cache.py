"""The compile cache: what hits, what must not, what it removes, and what it survives."""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

import dlc
from dlc import cache_key, compiler, hardware
from dlc.cache import DEFAULT_SIZE, Cache, cache_dir, cache_size, the_cache
from dlc.cache_key import DISTRIBUTIONS, NotCacheableError, compile_key
from dlc.cli.main import main
from dlc.errors import DlcError
from dlc.options import Options
from dlc.package import Package
from dlc.targets.base import find_target, target_names
from dlc.targets.multi import devices

LOADED = "print([name in sys.modules for name in ('tvm', 'onnx', 'torch')])"
DATA = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)


def network(weight: float = 1.0) -> onnx.ModelProto:
    weights = np.full((6, 6), weight, np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6])
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weights, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def save_external(folder: Path, weight: float = 1.0) -> Path:
    """The network with its weights in ``weights.bin`` beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "weights.bin").unlink(missing_ok=True)  # onnx would write behind its end
    onnx.save(network(weight), folder / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    return folder / "m.onnx"


def small(text: str, size: int = 1000) -> Package:
    return Package.create({"text": text}, {"data.bin": text.encode() * size})


def written(package: Package, path: Path) -> bytes:
    package.save(path)
    return path.read_bytes()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, turned on; gives the folder of its packages."""
    monkeypatch.setenv("DLC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DLC_CACHE_SIZE")
    return tmp_path / "cache" / "packages"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The targets of the compilations that were really done."""
    done: list[str] = []
    original = compiler._compile_model

    def counted(model: Any, options: Options, *rest: Any) -> Package:
        done.append(options.target)
        return original(model, options, *rest)

    monkeypatch.setattr(compiler, "_compile_model", counted)
    return done


# --- where, and how large --------------------------------------------------------------------------------------------


def test_the_suite_has_no_cache() -> None:
    assert the_cache().limit == 0


def test_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    for name in ("DLC_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_dir() == Path("/h/.cache/dlc")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/dlc")
    monkeypatch.setenv("DLC_CACHE", "/d")
    assert cache_dir() == Path("/d") and the_cache().folder == Path("/d/packages")


@pytest.mark.parametrize(("text", "size"), [("", DEFAULT_SIZE), ("0", 0), ("7", 7), ("3K", 3000), ("2G", 2 * 10**9)])
def test_size(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLC_CACHE_SIZE", text)
    assert cache_size() == size


@pytest.mark.parametrize("text", ["-1", "1.5G", "much", "5T"])
def test_bad_size(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLC_CACHE_SIZE", text)
    with pytest.raises(DlcError, match=rf"DLC_CACHE_SIZE='{text}': expected a number of bytes, perhaps with K, M or G"):
        dlc.compile(network(), "reference")


# --- hits ------------------------------------------------------------------------------------------------------------


def test_hit(place: Path, compiled: list[str], tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "m.onnx")
    onnx.save(network(), tmp_path / "same.onnx")
    made = [dlc.compile(tmp_path / name, "reference") for name in ("m.onnx", "m.onnx", "same.onnx")]
    assert compiled == ["reference"]
    assert len({written(package, tmp_path / "p.dlc") for package in made}) == 1
    assert {package.name for package in made} == {"<package>"}
    outputs = dlc.load(made[1]).run({"x": DATA})["y"]
    np.testing.assert_allclose(outputs, np.maximum(DATA @ np.ones((6, 6), np.float32), 0), rtol=1e-5, atol=1e-5)
    assert place.stat().st_mode & 0o777 == 0o700


def test_hit_of_a_proto_and_of_the_zoo(place: Path, compiled: list[str]) -> None:
    for model in (network(), "zoo:vision"):
        for _ in range(2):
            dlc.compile(model, "reference")
    assert compiled == ["reference", "reference"] and len(list(place.iterdir())) == 2


def test_several_levels_are_one_entry(place: Path, compiled: list[str], tmp_path: Path) -> None:
    made = [dlc.compile(network(), target) for target in ("cpu:portable", "cpu:portable", "cpu:avx2")]
    assert compiled == ["cpu:portable", "cpu:avx2"] and len(list(place.iterdir())) == 2
    assert written(made[0], tmp_path / "a.dlc") == written(made[1], tmp_path / "b.dlc")


def test_no_cache(place: Path, compiled: list[str]) -> None:
    dlc.compile(network(), "reference", cache=False)
    assert not place.exists()
    dlc.compile(network(), "reference")
    dlc.compile(network(), "reference", cache=False)
    assert len(compiled) == 3


def test_a_hit_imports_no_compiler(place: Path, tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "m.onnx")
    code = (
        "import sys, dlc; dlc.compile(sys.argv[1], 'cpu'); print([m in sys.modules for m in ('tvm', 'onnx', 'torch')])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m.onnx")]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() for _ in range(2)]
    assert runs == ["[True, True, False]", "[False, False, False]"]


@pytest.mark.parametrize("name", target_names())
def test_a_target_is_found_without_the_compiler(name: str) -> None:
    code = f"import sys; from dlc.targets.base import find_target; find_target(sys.argv[1]).identity(); {LOADED}"
    run = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[False, False, False]"


@pytest.mark.parametrize("name", ["DLC_DUMP", "DLC_DEBUG"])
def test_stages_that_are_to_be_seen_are_computed(
    name: str, place: Path, compiled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dlc.compile(network(), "reference")
    monkeypatch.setenv(name, "1" if name == "DLC_DEBUG" else str(tmp_path / "stages"))
    dlc.compile(network(), "reference")
    assert len(compiled) == 2


# --- the key ---------------------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any], pytest.MonkeyPatch], None]


def _option(**changes: Any) -> Change:
    def change(given: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
        given["options"] = dataclasses.replace(given["options"], **changes)

    return change


def _given(name: str, make: Callable[[Path], Any]) -> Change:
    def change(given: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
        given[name] = make(given["folder"])

    return change


def _machine(**changes: Any) -> Change:
    def change(given: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
        machine = dataclasses.replace(hardware.this_machine(), **changes)
        patch.setattr(hardware, "this_machine", lambda: machine)

    return change


def _source(given: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    original = Path.read_bytes
    patch.setattr(Path, "read_bytes", lambda path: original(path) + b"#" * (path.name == "regions.py"))


def _cpu_identity(given: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    patch.setattr("dlc.targets.cpu.target.CpuTarget.identity", lambda self: {"isa": "another"})


def _version(distribution: str) -> Change:
    def change(given: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
        original = cache_key.version
        patch.setattr(cache_key, "version", lambda name: "next" if name == distribution else original(name))

    return change


def _save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def _named(text: str) -> onnx.ModelProto:
    model = network()
    model.producer_name = text
    return model


def _saved_data(path: Path, data: np.ndarray) -> Path:
    np.savez(path, x=data)
    return path


def _data_folder(path: Path, *arrays: np.ndarray) -> Path:
    path.mkdir(exist_ok=True)
    for number, array in enumerate(arrays):
        np.savez(path / f"{number}.npz", x=array)
    return path


BASE: dict[str, Callable[[Path], Any]] = {
    "file": lambda folder: {"model": _save(network(), folder / "m.onnx")},
    "proto": lambda folder: {"model": network()},
    "external": lambda folder: {"model": save_external(folder / "e")},
    "arrays": lambda folder: {"calibration": {"x": DATA}},
    "samples": lambda folder: {"calibration": [{"x": DATA[:2]}, {"x": DATA[2:4]}]},
    "npz": lambda folder: {"calibration": _saved_data(folder / "d.npz", DATA)},
    "folder": lambda folder: {"calibration": str(_data_folder(folder / "d", DATA, DATA))},
    "random": lambda folder: {"calibration": "random:1"},
    "zoo": lambda folder: {"calibration": "zoo:vision"},
    "symbolic": lambda folder: {"options": Options(shapes={"x": ("n", 6)})},
    "gpu": lambda folder: {"options": Options("gpu:cuda,sm_80")},
    "multi": lambda folder: {"options": Options("multi:2xcpu")},
}
CHANGES: list[tuple[str, Change]] = [
    ("file", _given("model", lambda folder: _save(network(2), folder / "m.onnx"))),
    ("file", _given("model", lambda folder: _save(_named("other"), folder / "m.onnx"))),
    ("file", _given("model", lambda folder: network(2))),
    ("proto", _given("model", lambda folder: network(2))),
    ("external", _given("model", lambda folder: save_external(folder / "e", 2))),
    ("file", _option(target="cpu:avx2")),
    ("file", _option(target="reference")),
    ("file", _option(quantize="int8")),
    ("file", _option(arithmetic="shift")),
    ("file", _option(calibration_method="mse")),
    ("file", _option(stream=True)),
    ("file", _option(shapes={"x": (4, 6)})),
    ("symbolic", _option(shapes={"x": ("m", 6)})),
    ("file", _given("calibration", lambda folder: "random")),
    ("random", _given("calibration", lambda folder: "random:2")),
    ("zoo", _given("calibration", lambda folder: None)),
    ("arrays", _given("calibration", lambda folder: {"x": DATA + 1})),
    ("arrays", _given("calibration", lambda folder: {"z": DATA})),
    ("arrays", _given("calibration", lambda folder: {"x": DATA.view(np.int32)})),
    ("arrays", _given("calibration", lambda folder: {"x": DATA.reshape(6, 8)})),
    ("samples", _given("calibration", lambda folder: [{"x": DATA[:4]}])),
    ("samples", _given("calibration", lambda folder: [{"x": DATA[2:4]}, {"x": DATA[:2]}])),
    ("npz", _given("calibration", lambda folder: _saved_data(folder / "d.npz", DATA + 1))),
    ("folder", _given("calibration", lambda folder: str(_data_folder(folder / "d", DATA, DATA + 1)))),
    ("folder", _given("calibration", lambda folder: str(_data_folder(folder / "d", DATA, DATA, DATA)))),
    ("file", _machine(features=frozenset({"sse2"}))),
    ("file", _machine(arch="aarch64")),
    ("file", _machine(l1=1)),
    ("file", _machine(l2=1)),
    ("file", _machine(l3=1)),
    (
        "file",
        _cpu_identity,
    ),
    ("gpu", lambda given, patch: patch.setattr("dlc.targets.gpu.target.nvcc_version", lambda: "99.0")),
    ("multi", lambda given, patch: patch.setattr(devices, "memory_bytes", lambda: 5)),
    (
        "multi",
        _cpu_identity,
    ),
    ("file", _source),
    ("file", lambda given, patch: patch.setattr(cache_key.platform, "python_version", lambda: "4.0")),
    *(("file", _version(name)) for name in DISTRIBUTIONS),
]


def _key(given: dict[str, Any]) -> str:
    cache_key.source_digest.cache_clear()
    cache_key.versions.cache_clear()
    options = given["options"]
    return compile_key(given["model"], options, given.get("calibration"), find_target(options.target))


@pytest.mark.parametrize(("base", "change"), CHANGES, ids=[f"{i}-{base}" for i, (base, _) in enumerate(CHANGES)])
def test_every_ingredient_changes_the_key(
    base: str, change: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"folder": tmp_path, "model": network(), "options": Options(), **BASE[base](tmp_path)}
    before = _key(given)
    assert _key({**given, **BASE[base](tmp_path)}) == before  # made again in the same way
    with monkeypatch.context() as patch:
        change(given, patch)
        assert _key(given) != before
    cache_key.source_digest.cache_clear()
    cache_key.versions.cache_clear()


def test_external_data_in_subgraphs_and_functions(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(DATA, "w")
    onnx.external_data_helper.set_external_data(tensor, "deep.bin")
    tensor.ClearField("raw_data")
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, None)])
    inside = helper.make_node("If", ["p"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph([inside], "g", [helper.make_tensor_value_info("p", TensorProto.BOOL, [])], [])
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("local", "f", [], ["c"], [constant], opsets)
    plain = helper.make_graph([], "g", [], [])
    for model in (helper.make_model(graph), helper.make_model(plain, functions=[function])):
        onnx.save(model, tmp_path / "m.onnx")
        keys = set()
        for content in (b"one", b"two"):
            (tmp_path / "deep.bin").write_bytes(content)
            keys.add(_key({"model": tmp_path / "m.onnx", "options": Options()}))
        assert len(keys) == 2


@pytest.mark.parametrize(
    ("calibration", "reason"),
    [
        (({"x": a} for a in DATA), "calibration data that can only be iterated is not read twice"),
        ({"x": np.array([None])}, "array 'x' is an array of objects"),
        ([DATA], "a calibration sample is not a dict"),
        ("/nowhere.npz", "an input cannot be read: .*nowhere"),
    ],
)
def test_not_cacheable(calibration: Any, reason: str) -> None:
    with pytest.raises(NotCacheableError, match=reason):
        compile_key(network(), Options(), calibration, find_target("cpu"))


def test_a_path_that_is_none(place: Path, tmp_path: Path) -> None:
    """With the cache and without it, the message is that of reading the model."""
    model = onnx.load(save_external(tmp_path), load_external_data=False)
    for entry in (e for t in model.graph.initializer for e in t.external_data if e.key == "location"):
        entry.value = "weights\0.bin"
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    for cache in (True, False):
        with pytest.raises(DlcError, match=f"{path}: not a valid ONNX model: "):
            dlc.compile(path, "reference", cache=cache)


def test_a_generator_of_samples_is_compiled_and_not_stored(place: Path, compiled: list[str]) -> None:
    for _ in range(2):
        dlc.compile(network(), "reference", "int8", ({"x": DATA[i : i + 2]} for i in range(0, 8, 2)))
    assert len(compiled) == 2 and not place.exists()


def test_a_model_that_changes_while_it_is_compiled_is_not_stored(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _save(network(), tmp_path / "m.onnx")
    original = compiler._compile_model

    def changing(*arguments: Any) -> Package:
        onnx.save(network(2), path)
        return original(*arguments)

    monkeypatch.setattr(compiler, "_compile_model", changing)
    dlc.compile(path, "reference")
    assert not place.exists()


# --- what is removed -------------------------------------------------------------------------------------------------


def _aged(cache: Cache, *keys: str) -> None:
    """Store small packages under `keys`, each used a minute later than the one before."""
    for number, key in enumerate(keys):
        cache.store(key, small(key))
        used = time.time() - 60 * (len(keys) - number)
        os.utime(cache.path(key), (used, used))


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", 10**9)
    _aged(cache, "a", "b", "c")
    size = cache.entries()[0].size
    assert cache.find("a") is not None  # now used last
    Cache(tmp_path / "c", 3 * size + size // 2).store("d", small("d"))
    assert [e.path.stem for e in cache.entries()] == ["c", "a", "d"]


def test_a_package_larger_than_the_cache_removes_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", 5000)
    _aged(cache, "a")
    cache.store("b", small("b", 6000))
    assert [e.path.stem for e in cache.entries()] == ["a"]


def test_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10**9)
    old, new = tmp_path / ".a.dlc.1-x.tmp", tmp_path / ".b.dlc.2-x.tmp"
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    os.utime(old, (1, 1))
    cache.store("c", small("c"))
    assert not old.exists() and new.exists()


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "foreign"])
def test_damage_is_found_and_compiled_again(
    damage: str, place: Path, compiled: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = written(dlc.compile(network(), "reference"), tmp_path / "p.dlc")
    (entry,) = place.iterdir()
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 1
    entry.write_bytes({"flipped": bytes(content), "truncated": whole[:-100], "empty": b"", "foreign": b"text"}[damage])
    again = dlc.compile(network(), "reference")
    assert written(again, tmp_path / "q.dlc") == whole and len(compiled) == 2
    assert f"compile cache: removing a damaged entry: {entry}" in caplog.text
    assert entry.read_bytes() == whole


# --- several processes -----------------------------------------------------------------------------------------------


def _use(folder: Path, seed: int) -> None:
    """Store and find at random in a cache that holds only a few of the packages."""
    cache, rng = Cache(folder, 12_000), np.random.default_rng(seed)
    for _ in range(60):
        key = "abcdef"[rng.integers(6)]
        if rng.integers(2):
            cache.store(key, small(key))
        else:
            found = cache.find(key)
            assert found is None or bytes(found.member("data.bin")) == key.encode() * 1000


def test_processes_share_a_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_use, args=(tmp_path / "c", seed)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    cache = Cache(tmp_path / "c", 12_000)
    cache.trim()
    left = cache.entries()
    assert 0 < sum(entry.size for entry in left) <= 12_000
    assert sorted((tmp_path / "c").iterdir()) == sorted(entry.path for entry in left)
    assert all(cache.find(entry.path.stem) is not None for entry in left)


def test_two_processes_compile_the_same(place: Path, tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "m.onnx")
    code = "import sys, dlc; dlc.compile(sys.argv[1], 'reference').save(sys.argv[2])"
    outputs = [tmp_path / "1.dlc", tmp_path / "2.dlc"]
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "m.onnx"), str(o)]) for o in outputs]
    assert [process.wait() for process in running] == [0, 0]
    (entry,) = place.iterdir()
    assert entry.read_bytes() == outputs[0].read_bytes() == outputs[1].read_bytes()


# --- a cache that cannot be used -------------------------------------------------------------------------------------


def test_a_cache_that_cannot_be_made(place: Path, compiled: list[str], caplog: pytest.LogCaptureFixture) -> None:
    place.parent.write_text("a file where the folder would be")
    dlc.compile(network(), "reference")
    assert len(compiled) == 1
    assert "compile cache: not stored: " in caplog.text and str(place) in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache(place: Path, compiled: list[str], caplog: pytest.LogCaptureFixture) -> None:
    dlc.compile(network(), "reference")
    place.chmod(0o500)
    dlc.compile(network(), "reference")
    assert len(compiled) == 1  # what is there is used
    dlc.compile(network(2), "reference")
    assert "compile cache: not stored: cannot write" in caplog.text


def test_a_full_disk(place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dlc.package._add", full)
    dlc.compile(network(), "reference")
    assert "compile cache: not stored: cannot write" in caplog.text and "No space left" in caplog.text
    assert list(place.iterdir()) == []


# --- the command line ------------------------------------------------------------------------------------------------


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result


def test_command_line(place: Path, compiled: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, out = _save(network(), tmp_path / "m.onnx"), tmp_path / "m.dlc"
    caplog.set_level(logging.INFO, "dlc")
    texts = []
    for extra in ([], [], ["--no-cache"]):
        caplog.clear()
        invoke("compile", model, "-o", out, "--target", "reference", *extra)
        texts.append(caplog.text)
    assert "compile cache: miss " in texts[0] and "compile cache: hit " in texts[1]
    assert "compile cache" not in texts[2] and len(compiled) == 2
    size = out.stat().st_size
    expected = {"folder": str(place), "entries": 1, "bytes": size, "limit": DEFAULT_SIZE}
    assert json.loads(invoke("cache", "--json").stdout) == expected
    assert invoke("cache").stdout == f"{place}: 1 package, {size / 1000:.1f} KB of at most 2.0 GB\n"
    assert f"compile cache: {place}: 1 package, " in invoke("doctor").stdout
    assert invoke("cache", "clear").stdout == f"removed 1 package, {size / 1000:.1f} KB, from {place}\n"
    assert list(place.iterdir()) == []
    assert invoke("cache", "clear").stdout.startswith("removed 0 packages, 0 B, from ")


def test_command_line_without_a_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dlc")
    invoke("compile", _save(network(), tmp_path / "m.onnx"), "-o", tmp_path / "m.dlc", "--target", "reference")
    assert "compile cache: not used: it is turned off" in caplog.text
    assert invoke("cache").stdout.endswith("/packages (turned off by DLC_CACHE_SIZE=0)\n")
