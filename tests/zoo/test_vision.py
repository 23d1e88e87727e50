"""The vision family: embedded files, loaders, training, export, evaluation and the `zoo` verbs."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from dlc import zoo as models
from dlc.cli.zoo import zoo
from dlc.errors import DlcError
from dlc.zoo.vision import data, evaluate


def full_set_missing() -> bool:
    try:
        data.find_dataset()
    except DlcError:
        return True
    return False


needs_full_set = pytest.mark.skipif(full_set_missing(), reason="Fashion-MNIST missing: python -m dlc.zoo.vision.data")


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


def test_missing_set_names_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLC_CACHE", str(tmp_path))
    monkeypatch.setattr(data, "_INSTALLED", Path("/nowhere"))
    with pytest.raises(DlcError, match=r"python -m dlc\.zoo\.vision\.data.*apt-get install dataset-fashion-mnist"):
        data.load_full("train")


def test_unknown_excerpt_lists_the_known() -> None:
    with pytest.raises(DlcError, match="known: test, calibration"):
        data.load_excerpt("train")


# --- the committed model and its card


def test_unknown_model_lists_the_known() -> None:
    with pytest.raises(DlcError, match=r"no model 'audio' in the zoo \(known: vision\)"):
        models.model_path("audio")


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
    content = models.model_path("vision").read_bytes()
    assert card["onnx_sha256"] == hashlib.sha256(content).hexdigest()
    assert card["onnx_bytes"] == len(content)
    assert (card["parameters"], card["multiply_adds"]) == evaluate.count_work(models.model_path("vision"))
    assert card["parameters"] <= 450_000
    assert card["value"] >= 0.92


def test_committed_model_reaches_its_embedded_figure() -> None:
    pytest.importorskip("onnxruntime")
    score = evaluate.accuracy(evaluate.onnx_predictor(models.model_path("vision")), *data.load_excerpt("test"))
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


# --- evaluation


def test_chunks_fill_the_batch_and_drop_the_filling() -> None:
    seen = []

    def predict(batch: np.ndarray) -> np.ndarray:
        seen.append(len(batch))
        return batch.reshape(len(batch), -1)[:, :10]

    inputs = np.arange(7 * 784, dtype=np.float32).reshape(7, 1, 28, 28)
    np.testing.assert_array_equal(evaluate.chunked(predict, 3)(inputs), inputs.reshape(7, -1)[:, :10])
    assert seen == [3, 3, 3]


@dataclass
class FakeEntry:
    name: str
    shape: tuple[int | str, ...]


class FakeSession:
    """Answers class 3 always, and refuses any batch but the one its input declares."""

    def __init__(self, batch: int | str) -> None:
        self.inputs = [FakeEntry("image", (batch, 1, 28, 28))]

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        batch = self.inputs[0].shape[0]
        assert batch == "N" or len(feed["image"]) == batch
        return {"logits": np.eye(10, dtype=np.float32)[np.full(len(feed["image"]), 3)]}


@pytest.mark.parametrize("batch", ["N", 1, 32, 4096])
def test_eval_feeds_a_package_in_batches_that_fit(
    batch: int | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "p.dlc"
    package.touch()
    monkeypatch.setattr("dlc.load", lambda path: FakeSession(batch), raising=False)
    result = invoke("eval", "vision", "--package", str(package), "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.output)
    assert record["count"] == 1000
    assert record["correct"] == int((data.load_excerpt("test")[1] == 3).sum())


# --- verbs


def test_list_gives_name_metric_and_figure() -> None:
    (card,) = json.loads(invoke("list", "--json").output)
    assert card["name"] == "vision"
    line = invoke("list").output
    assert "vision" in line and card["metric"] in line and f"{card['value']:.2%}" in line


def test_export_writes_the_committed_model(tmp_path: Path) -> None:
    out = tmp_path / "new" / "m.onnx"
    assert invoke("export", "vision", "-o", str(out)).exit_code == 0
    assert out.read_bytes() == models.model_path("vision").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train", "audio"], "known: vision"),
        (["eval", "audio"], "known: vision"),
        (["export", "audio", "-o", "x.onnx"], "known: vision"),
        (["eval", "vision", "--package", "missing.dlc"], "missing.dlc does not exist"),
        (["eval", "vision", "--package", "a.dlc", "--onnx", "b.onnx"], "exclude each other"),
    ],
)
def test_errors_are_for_users(arguments: list[str], text: str) -> None:
    error = invoke(*arguments).exception
    assert isinstance(error, DlcError)
    assert text in str(error)


@pytest.mark.parametrize("arguments", [["train", "vision"], ["export", "vision", "-o", "x.onnx", "--weights", "w"]])
def test_missing_torch_says_what_to_install(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("dlc.zoo.vision.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    error = invoke(*arguments).exception
    assert isinstance(error, DlcError)
    assert "pip install 'dlc[zoo]'" in str(error)


def test_missing_onnxruntime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    error = invoke("eval", "vision").exception
    assert isinstance(error, DlcError)
    assert "pip install 'dlc[bench]'" in str(error)


# --- training and export (torch)


def state(model: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def test_resumed_run_equals_an_uninterrupted_one(
    noise: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'dlc[zoo]'")
    from dlc.zoo.vision import train

    monkeypatch.setenv("DLC_CACHE", str(tmp_path))
    config = train.TrainConfig(epochs=3, images=48, batch=16, threads=1)
    whole = train.train(config, *noise)

    def interrupt(result: Any) -> None:
        if len(result.losses) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.train(config, *noise, on_epoch=interrupt)
    assert train.checkpoint_path(config).is_file()
    epochs: list[int] = []
    resumed = train.train(config, *noise, on_epoch=lambda result: epochs.append(len(result.losses)))
    assert epochs == [3]
    assert resumed.losses == whole.losses and resumed.held_out == whole.held_out
    for name, value in state(whole.model).items():
        np.testing.assert_array_equal(state(resumed.model)[name], value, err_msg=name)
    assert not list(train.checkpoint_path(config).parent.iterdir())


def test_broken_files_are_named(
    noise: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'dlc[zoo]'")
    from dlc.zoo.vision import train

    monkeypatch.setenv("DLC_CACHE", str(tmp_path))
    config = train.TrainConfig(images=48, batch=16, threads=1)
    path = train.checkpoint_path(config)
    path.parent.mkdir()
    torch.save({"model": {}}, path)
    with pytest.raises(DlcError, match="delete it to start over"):
        train.train(config, *noise)
    path.write_bytes(b"no archive")
    with pytest.raises(DlcError, match="delete it to start over"):
        train.train(config, *noise)
    with pytest.raises(DlcError, match="does not hold weights"):
        train.load_weights(path)


def test_another_seed_gives_another_model(
    noise: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'dlc[zoo]'")
    from dlc.zoo.vision import train

    monkeypatch.setenv("DLC_CACHE", str(tmp_path))
    first, second = (
        train.train(train.TrainConfig(seed=seed, epochs=1, images=48, batch=16, threads=1), *noise) for seed in (0, 1)
    )
    assert first.losses != second.losses


def test_too_few_images_are_refused(noise: tuple[np.ndarray, np.ndarray]) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'dlc[zoo]'")
    from dlc.zoo.vision import train

    for config in (train.TrainConfig(images=65), train.TrainConfig(images=16, batch=32)):
        with pytest.raises(ValueError, match="images asked for"):
            train.train(config, *noise)


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
    from dlc.zoo.vision import export, model, train

    torch.manual_seed(0)
    network = model.VisionNet().eval()
    assert export.export(network, tmp_path / "m.onnx") <= 1e-4
    weights = tmp_path / "w.safetensors"
    config = train.TrainConfig()
    train.save_weights(train.TrainResult(network.to(memory_format=torch.channels_last), config, [1.0], [0.1]), weights)
    assert invoke("export", "vision", "-o", str(tmp_path / "again.onnx"), "--weights", str(weights)).exit_code == 0
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()


def test_export_refuses_a_wrong_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'dlc[zoo]'")
    from dlc.zoo.vision import export, model

    content = export.export_bytes(model.VisionNet().eval())
    monkeypatch.setattr(export, "export_bytes", lambda network: content)
    with pytest.raises(DlcError, match="differs from torch"):
        export.export(model.VisionNet().eval(), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_interrupted_training_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'dlc[zoo]'")
    from dlc.zoo.vision import train

    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("DLC_CACHE", str(tmp_path))
    monkeypatch.setattr(train, "train", interrupt)
    write_full_set(tmp_path)
    result = invoke("train", "vision", "--data", str(tmp_path))
    assert result.exit_code == 1
    assert "the same command goes on" in result.stderr


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
