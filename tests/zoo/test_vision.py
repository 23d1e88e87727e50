"""The vision family: embedded files, loaders, training, export, evaluation and the `zoo` verbs."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

import dlc
from dlc import zoo as models
from dlc.cli.zoo import zoo
from dlc.errors import DlcError
from dlc.zoo.models import OnnxModel
from dlc.zoo.vision import data, evaluate


def full_set_missing() -> bool:
    try:
        data.find_dataset()
    except DlcError:
        return True
    return False


needs_full_set = pytest.mark.skipif(full_set_missing(), reason="Fashion-MNIST missing: dlc zoo fetch vision")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(zoo, arguments)


@pytest.fixture
def noise() -> tuple[np.ndarray, np.ndarray]:
    """Images whose brightness tells their class, so that a few steps learn something."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 64).astype(np.uint8)
    images = (rng.integers(0, 30, (64, 1, 28, 28)) + 20 * labels[:, None, None, None]).astype(np.uint8)
    return images, labels


# --- embedded files and loaders


@pytest.mark.parametrize(
    ("name", "count", "digest"),
    [
        ("test", 1000, "78f59072a285ae79d023af2b493dec8a69594e10d31c55fd76b55aeb8ae55b8e"),
        ("calibration", 500, "643fab1fa9b43b86b90b3e3667a1dd0321621b6573f9d9ada297f0f8de7d8c4e"),
    ],
)
def test_excerpt_is_the_committed_one(name: str, count: int, digest: str) -> None:
    images, labels = data.load_excerpt(name)
    assert images.shape == (count, 1, 28, 28) and images.dtype == np.uint8
    assert labels.shape == (count,) and labels.dtype == np.uint8
    assert set(labels.tolist()) == set(range(10))
    assert hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() == digest


@needs_full_set
@pytest.mark.parametrize("name", ["test", "calibration"])
def test_excerpt_is_drawn_from_the_full_set(name: str) -> None:
    chosen = data.choose_excerpt(name)
    with np.load(data.excerpt_path(name)) as committed:
        assert set(committed.files) == set(chosen)
        for key, expected in chosen.items():
            np.testing.assert_array_equal(committed[key], expected)
            assert committed[key].dtype == expected.dtype


def test_normalise_is_the_documented_formula() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(49).reshape(16, 1, 28, 28)
    expected = (pixels.astype(np.float64) / 255 - 0.286) / 0.353
    actual = data.normalise(pixels)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("bad", [np.zeros((2, 1, 28, 28), np.float32), np.zeros((2, 28, 28), np.uint8)])
def test_normalise_refuses_what_are_not_images(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(N, 1, 28, 28\)"):
        data.normalise(bad)


def test_load_inputs_normalises_the_excerpt() -> None:
    inputs, labels = data.load_inputs("calibration")
    images, same = data.load_excerpt("calibration")
    np.testing.assert_array_equal(inputs, data.normalise(images))
    np.testing.assert_array_equal(labels, same)
    # The constants are those of the whole training set, so a sample of it is nearly standardised.
    assert abs(inputs.mean()) < 0.05 and abs(inputs.std() - 1) < 0.05


def write_full_set(folder: Path) -> None:
    for images, labels, count in data._FILES.values():
        head = bytes([0, 0, 8, 3]) + np.array([count, 28, 28], ">i4").tobytes()
        (folder / images).write_bytes(gzip.compress(head + bytes(count * 784), 1))
        head = bytes([0, 0, 8, 1]) + np.array([count], ">i4").tobytes()
        (folder / labels).write_bytes(gzip.compress(head + bytes([7]) * count, 1))


def test_full_set_is_read_from_a_given_folder(tmp_path: Path) -> None:
    write_full_set(tmp_path)
    images, labels = data.load_full("test", tmp_path)
    assert images.shape == (10_000, 1, 28, 28)
    assert (labels == 7).all() and labels.shape == (10_000,)


@pytest.mark.parametrize(
    "content",
    [b"", b"not gzip", gzip.compress(b"\0\0\x08\x03 short", mtime=0), gzip.compress(bytes(9_000), mtime=0)[:-9]],
)
def test_broken_idx_file_is_named(tmp_path: Path, content: bytes) -> None:
    write_full_set(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DlcError, match="t10k-images"):
        data.load_full("test", tmp_path)


def test_unknown_excerpt_lists_the_known() -> None:
    with pytest.raises(DlcError, match="known: test, calibration"):
        data.load_excerpt("train")


# --- the committed model and its card


def test_committed_model_is_plain_and_small() -> None:
    path = models.model_path("vision")
    assert path.stat().st_size <= 2_000_000
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    operators = {node.op_type for node in model.graph.node}
    assert operators == {"Conv", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == ("image", "logits")
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == ["N", 1, 28, 28]
    assert [d.dim_param or d.dim_value for d in logits.type.tensor_type.shape.dim] == ["N", 10]


def test_card_describes_the_committed_model() -> None:
    card = models.read_card("vision")
    assert (card["parameters"], card["multiply_adds"]) == evaluate.count_work(models.model_path("vision"))
    assert card["parameters"] <= 450_000
    assert card["value"] >= 0.92


def test_committed_model_reaches_its_embedded_figure() -> None:
    pytest.importorskip("onnxruntime")
    score = evaluate.accuracy(OnnxModel(models.model_path("vision")), *data.load_excerpt("test"))
    # Another processor may round a tie the other way.
    assert abs(score.value - models.read_card("vision")["embedded_value"]) <= 0.002


def test_count_work_counts_one_image(tmp_path: Path) -> None:
    graph = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 1, 8, 8] x) => (float[N, 5] z)
        <float[2, 1, 3, 3] w = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}, float[5, 32] v = {0}> {
            a = Conv<strides=[2, 2], pads=[1, 1, 1, 1]>(x, w)
            b = Flatten(a)
            z = Gemm<transB=1>(b, v)
        }"""
    )
    onnx.save(graph, tmp_path / "m.onnx")
    assert evaluate.count_work(tmp_path / "m.onnx") == (18 + 160, 18 * 16 + 160)


# --- verbs


def test_export_writes_the_committed_model(tmp_path: Path) -> None:
    out = tmp_path / "new" / "m.onnx"
    assert invoke("export", "vision", "-o", str(out)).exit_code == 0
    assert out.read_bytes() == models.model_path("vision").read_bytes()


def test_eval_measures_a_compiled_package(tmp_path: Path) -> None:
    package = tmp_path / "v.dlc"
    dlc.compile("zoo:vision").save(package)
    result = invoke("eval", "vision", "--package", str(package), "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.output)
    assert record["count"] == 1000
    assert abs(record["value"] - models.read_card("vision")["embedded_value"]) <= 0.002


def test_sample_classifies_embedded_images() -> None:
    pytest.importorskip("onnxruntime")
    lines = invoke("sample", "vision", "--count", "3", "--seed", "1").output.splitlines()
    assert len(lines) == 3 and all(line.startswith("test image ") and line.endswith("%") for line in lines)


@pytest.mark.parametrize("arguments", [["train", "vision"], ["export", "vision", "-o", "x.onnx", "--weights", "w"]])
def test_missing_torch_says_what_to_install(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("dlc.zoo.vision.", "dlc.zoo.training"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    error = invoke(*arguments).exception
    assert isinstance(error, DlcError)
    assert "pip install 'dlc[zoo]'" in str(error)


# --- training and export (torch)


def test_broken_weights_are_named(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'dlc[zoo]'")
    from dlc.zoo.vision import train

    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    with pytest.raises(DlcError, match="does not hold weights"):
        train.load_weights(tmp_path / "w.safetensors")


def test_another_seed_gives_another_model(
    noise: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'dlc[zoo]'")
    from dlc.zoo.vision import train

    monkeypatch.setenv("DLC_CACHE", str(tmp_path))
    first, second = (
        train.fit(train.TrainConfig(seed=seed, epochs=1, images=48, batch=16, threads=1), *noise)[1] for seed in (0, 1)
    )
    assert first.losses != second.losses


def test_too_few_images_are_refused(noise: tuple[np.ndarray, np.ndarray]) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'dlc[zoo]'")
    from dlc.zoo.vision import train

    for config in (train.TrainConfig(images=65), train.TrainConfig(images=16, batch=32)):
        with pytest.raises(ValueError, match="images asked for"):
            train.fit(config, *noise)


def test_augmentation_only_mirrors_and_shifts() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'dlc[zoo]'")
    from dlc.zoo.vision import train

    black = (0 - data.MEAN) / data.STD
    image = torch.full((64, 1, 28, 28), black)
    image[:, 0, 10, 5] = 1.0
    moved = train.augment(image, torch.Generator().manual_seed(0))
    spots = (moved[:, 0] == 1.0).nonzero()
    assert len(spots) == 64 and torch.isclose(moved, torch.tensor(black)).sum() == 64 * 783
    assert set(spots[:, 1].tolist()) == {9, 10, 11}
    assert set(spots[:, 2].tolist()) == {4, 5, 6, 21, 22, 23}


def test_export_is_deterministic_and_true_to_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'dlc[zoo]'")
    from dlc.zoo import training
    from dlc.zoo.vision import export, model, train

    torch.manual_seed(0)
    network = model.VisionNet().eval()
    assert export.export_model(network, tmp_path / "m.onnx") <= 1e-4
    weights = tmp_path / "w.safetensors"
    config = train.TrainConfig()
    history = training.History([1.0], [0.1])
    training.save_weights(network.to(memory_format=torch.channels_last), config, history, weights)
    assert invoke("export", "vision", "-o", str(tmp_path / "again.onnx"), "--weights", str(weights)).exit_code == 0
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()


def test_export_refuses_a_wrong_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'dlc[zoo]'")
    from dlc.zoo.vision import export, model

    content = export.export_bytes(model.VisionNet().eval())
    monkeypatch.setattr(export, "export_bytes", lambda network: content)
    with pytest.raises(DlcError, match="differs from torch"):
        export.export_model(model.VisionNet().eval(), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.slow
@needs_full_set
def test_quick_training_lowers_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'dlc[zoo]'")
    folder = data.find_dataset()
    monkeypatch.setenv("DLC_CACHE", str(tmp_path))
    out = tmp_path / "m.onnx"
    result = invoke("train", "vision", "--quick", "--out", str(out), "--data", str(folder))
    assert result.exit_code == 0, result.output
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in result.output.splitlines() if "held-out" in line]
    assert len(losses) == 2 and losses[1] < 0.8 * losses[0]
    assert out.is_file() and out.with_suffix(".safetensors").is_file()
