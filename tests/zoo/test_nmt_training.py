"""Training and export of the translation family, which need torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from dlc.errors import DlcError
from dlc.zoo.nmt import data, graphs

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'dlc[zoo]'")

from dlc.zoo import training  # noqa: E402
from dlc.zoo.family import TrainOptions  # noqa: E402
from dlc.zoo.nmt import export, model, train  # noqa: E402

VOCABULARY = 30
SHAPE = model.Shape(embedding=8, encoder=6, decoder=10, attention=7)
CONFIG = train.TrainConfig(epochs=2, batch=8, peak_rate=1e-2)


@pytest.fixture
def pairs() -> list[train.Row]:
    """Sentences, and as their translations the same pieces shifted by one, in reverse."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(4, VOCABULARY - 1, rng.integers(1, 9)) for _ in range(66)]
    return [(np.append(row, data.EOS), np.append(row[::-1] + 1, data.EOS)) for row in rows]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small networks, and checkpoints out of the way."""
    monkeypatch.setenv("DLC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model, "VOCABULARY", VOCABULARY)
    monkeypatch.setattr(train, "build", build)
    source = np.random.default_rng(1).integers(4, VOCABULARY, (8, 5))
    monkeypatch.setattr(data, "samples", lambda part: {data.INPUT: source})


def build(size: str) -> model.Translator:
    return model.Translator(SHAPE if size == "attention" else replace(SHAPE, attention=0))


@pytest.mark.parametrize("size", train.SIZES)
def test_padding_changes_nothing(size: str, pairs: list[train.Row]) -> None:
    torch.manual_seed(0)
    network = build(size).eval()
    together = train.pad(pairs[:8])
    assert (together[0] == data.PAD).any() and (together[1] == data.PAD).any()
    with torch.no_grad():
        logits, looks = network(*together[:2])
        for row, pair in enumerate(pairs[:8]):
            source, before, after = train.pad([pair])
            alone, look = network(source, before)
            np.testing.assert_allclose(logits[row, : len(pair[1])], alone[0], atol=1e-5)
            assert before[0].tolist() == [data.BOS, *pair[1][:-1]] and after[0].tolist() == pair[1].tolist()
            if looks is not None:
                np.testing.assert_allclose(looks[row, : len(pair[1]), : len(pair[0])], look[0], atol=1e-5)
                assert not looks[row, :, len(pair[0]) :].any()


def test_each_pair_comes_once_an_epoch(pairs: list[train.Row]) -> None:
    batches = list(train._batches(pairs, 8, torch.Generator().manual_seed(3)))
    assert len(batches) == 8
    seen = [tuple(row[row != data.PAD].tolist()) for source, _, _ in batches for row in source]
    known = [tuple(source.tolist()) for source, _ in pairs]
    assert len(seen) == 64 and all(seen.count(row) <= known.count(row) for row in seen)
    again = list(train._batches(pairs, 8, torch.Generator().manual_seed(3)))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, again, strict=True))


@pytest.mark.parametrize("size", train.SIZES)
def test_training_learns_and_goes_on_as_if_never_interrupted(size: str, pairs: list[train.Row]) -> None:
    config = replace(CONFIG, size=size)
    whole, history = train.fit(config, pairs, pairs)
    assert history.losses[1] < history.losses[0]

    def interrupt(history: training.History) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.fit(config, pairs, pairs, on_epoch=interrupt)
    again, resumed = train.fit(config, pairs, pairs)
    assert resumed.losses == history.losses and resumed.held_out == history.held_out
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert train.fit(replace(config, seed=1), pairs, pairs)[1].losses != history.losses


def test_bits_held_out_are_those_of_each_piece(pairs: list[train.Row]) -> None:
    torch.manual_seed(0)
    network = build("attention").eval()
    nats = 0.0
    with torch.no_grad():
        for pair in pairs:
            source, before, after = train.pad([pair])
            log = torch.log_softmax(network(source, before)[0][0], 1)
            nats -= float(log[torch.arange(after.shape[1]), after[0]].sum())
        found = train._bits(network, pairs, 8)
    assert found == pytest.approx(nats / np.log(2) / sum(len(target) for _, target in pairs), rel=1e-5)


def test_too_few_pairs_are_refused(pairs: list[train.Row]) -> None:
    with pytest.raises(DlcError, match="5 pairs make no batch of 8"):
        train.fit(CONFIG, pairs[:5], pairs)


def test_options_make_the_configuration() -> None:
    quick = train.configure(TrainOptions("plain", quick=True, seed=5))
    assert (quick.size, quick.seed, quick.pairs) == ("plain", 5, 640)
    assert train.configure(TrainOptions("attention", epochs=3, device="cuda")).epochs == 3


def test_long_rows_are_left_out() -> None:
    pytest.importorskip("sentencepiece")
    pairs = [data.Pair("A table.", "Une table."), data.Pair("A table.", "x y z w " * 30)]
    (row,) = train.rows(pairs)
    assert data.decode(row[0]) == "A table." and data.decode(row[1]) == "Une table."


@pytest.mark.parametrize("size", train.SIZES)
def test_export_is_deterministic_and_true_to_torch(size: str, pairs: list[train.Row], tmp_path: Path) -> None:
    config = replace(CONFIG, size=size, epochs=1)
    network, history = train.fit(config, pairs, pairs[:8])
    training.save_weights(network, config, history, tmp_path / "w.safetensors")
    for name in ("a.onnx", "b.onnx"):
        assert "torch and ONNX agree to" in export.export(tmp_path / "w.safetensors", tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert f'"size": "{size}"' in onnx.load(tmp_path / "a.onnx").metadata_props[0].value
    read = graphs.read_translator(tmp_path / "a.onnx")
    known = graphs.from_training({name: value.numpy() for name, value in network.state_dict().items()})
    for name, value in known.items():
        np.testing.assert_array_equal(read[name], value)


@pytest.mark.parametrize("changed", ["cell.weight_hh", "encoder.recurrence", "readout.bias", "energy.weight"])
def test_export_refuses_a_wrong_graph(
    changed: str, pairs: list[train.Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, epochs=1)
    network, history = train.fit(config, pairs, pairs[:8])
    training.save_weights(network, config, history, tmp_path / "w.safetensors")
    right = graphs.from_training

    def wrong(tensors: graphs.Weights) -> dict[str, np.ndarray]:
        found = right(tensors)
        return {**found, changed: found[changed] + 0.1}

    monkeypatch.setattr(graphs, "from_training", wrong)
    with pytest.raises(DlcError, match=r"differs from torch by .* in a log probability or share of attention"):
        export.export(tmp_path / "w.safetensors", tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_weights_of_another_network_are_refused(pairs: list[train.Row], tmp_path: Path) -> None:
    network, history = train.fit(replace(CONFIG, epochs=1), pairs, pairs[:8])
    training.save_weights(network, replace(CONFIG, size="plain"), history, tmp_path / "w.safetensors")
    with pytest.raises(DlcError, match=r"w\.safetensors does not hold weights of this network"):
        export.export(tmp_path / "w.safetensors", tmp_path / "m.onnx")
