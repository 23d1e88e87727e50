"""Training and export of the WaveNet family, which need torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from dlc.errors import DlcError
from dlc.zoo.wavenet import data, graphs

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'dlc[zoo]'")

from dlc.zoo import training  # noqa: E402
from dlc.zoo.family import TrainOptions  # noqa: E402
from dlc.zoo.wavenet import export, model, train  # noqa: E402

SMALL = model.Shape(dilations=(1, 2, 4), residual=8, skip=16)
CONFIG = train.TrainConfig(epochs=2, steps=6, batch=2, length=128, held_out=2)


@pytest.fixture
def prompts() -> list[data.Codes]:
    rng = np.random.default_rng(0)
    time = np.arange(1500)
    return [data.encode(0.5 * np.sin(time * f) + 0.01 * rng.standard_normal(1500)) for f in (0.1, 0.2, 0.3)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small networks, and checkpoints out of the way."""
    monkeypatch.setenv("DLC_CACHE", str(tmp_path / "cache"))
    sizes = {"plain": SMALL, "mel": replace(SMALL, bands=data.BANDS)}

    def build(size: str) -> torch.nn.Module:
        return model.Recurrent(8, 16) if size == "lstm" else model.WaveNet(sizes[size])

    monkeypatch.setattr(train, "build", build)


def test_network_is_causal_and_sees_its_receptive_field() -> None:
    torch.manual_seed(0)
    network = model.WaveNet(SMALL).eval()
    codes = torch.randint(0, 256, (1, 30))
    changed = codes.clone()
    changed[0, 12] = (changed[0, 12] + 100) % 256
    with torch.no_grad():
        moved = (network(codes) - network(changed)).abs().amax((0, 1)) > 0
    assert moved.nonzero()[:, 0].tolist() == list(range(12, 12 + sum(SMALL.dilations) + 1))


@pytest.mark.parametrize("size", train.SIZES)
def test_training_learns_and_goes_on_as_if_never_interrupted(size: str, prompts: list[data.Codes]) -> None:
    config = replace(CONFIG, size=size)
    whole, history = train.fit(config, prompts, prompts)
    assert history.losses[1] < history.losses[0] < np.log(256) + 0.5

    def interrupt(history: training.History) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.fit(config, prompts, prompts, on_epoch=interrupt)
    again, resumed = train.fit(config, prompts, prompts)
    assert resumed.losses == history.losses and resumed.held_out == history.held_out
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert train.fit(replace(config, seed=1), prompts, prompts)[1].losses != history.losses


def test_frames_lie_where_the_codes_lie(prompts: list[data.Codes]) -> None:
    segments = train._Segments(prompts[:1], replace(CONFIG, size="mel"))
    before, mel, after = segments.draw(4, torch.Generator().manual_seed(0))
    frames = data.upsample(data.mel_frames(prompts[0]), len(prompts[0]))
    known = data.context(prompts[0])
    for row in range(4):
        starts = [s for s in range(1500 - 128) if np.array_equal(prompts[0][s : s + 128], after[row].numpy())]
        assert len(starts) == 1
        (start,) = starts
        np.testing.assert_array_equal(before[row].numpy(), known[start : start + 128])
        assert mel is not None
        np.testing.assert_array_equal(mel[row].numpy(), frames[:, start : start + 128])


def test_short_prompts_are_refused(prompts: list[data.Codes]) -> None:
    with pytest.raises(DlcError, match="no prompt is longer than a segment of 128 samples"):
        train.fit(CONFIG, [prompts[0][:100]], prompts)


def test_quick_is_a_part_of_the_whole() -> None:
    quick = train.configure(TrainOptions("mel", quick=True, seed=5))
    assert (quick.size, quick.seed) == ("mel", 5)
    assert quick.epochs * quick.steps * quick.batch * quick.length < 100_000
    assert train.configure(TrainOptions("plain", epochs=3)).epochs == 3


@pytest.mark.parametrize("size", train.SIZES)
def test_export_is_deterministic_and_true_to_torch(size: str, prompts: list[data.Codes], tmp_path: Path) -> None:
    config = replace(CONFIG, size=size, epochs=1, steps=1)
    network, history = train.fit(config, prompts, prompts)
    training.save_weights(network, config, history, tmp_path / "w.safetensors")
    for name in ("a.onnx", "b.onnx"):
        assert "torch and ONNX agree to" in export.export(tmp_path / "w.safetensors", tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert '"seed": 0' in onnx.load(tmp_path / "a.onnx").metadata_props[0].value
    if size != "lstm":
        weights, dilations = graphs.read_likelihood(tmp_path / "a.onnx")
        assert dilations == list(SMALL.dilations)
        state = network.state_dict()
        for name, value in weights.items():
            if name in state:  # else a constant of the graph
                np.testing.assert_array_equal(value, state[name].numpy())


def test_export_refuses_a_wrong_graph(
    prompts: list[data.Codes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, epochs=1, steps=1)
    network, history = train.fit(config, prompts, prompts)
    training.save_weights(network, config, history, tmp_path / "w.safetensors")
    other = export.build(model.WaveNet(SMALL).eval())
    monkeypatch.setattr(export, "build", lambda network: other)
    with pytest.raises(DlcError, match="differs from torch"):
        export.export(tmp_path / "w.safetensors", tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()
