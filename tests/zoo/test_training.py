"""The training loop: resuming, determinism, clipping, weights and their notes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlc.errors import DlcError

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'dlc[zoo]'")
from torch import nn  # noqa: E402

from dlc.zoo import training  # noqa: E402

CONFIG = training.Config(seed=3, epochs=3, threads=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLC_CACHE", str(tmp_path))


def task(config: training.Config, clip: float | None = None) -> training.Task:
    """A regression with dropout, so that both generators matter."""
    training.seed_everything(config)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimiser = torch.optim.Adam(model.parameters(), 0.01)

    def batches(generator: torch.Generator) -> Iterator[torch.Tensor]:
        for _ in range(5):
            yield torch.randn(16, 4, generator=generator)

    return training.Task(
        model, optimiser, 5, batches,
        lambda x: (model(x)[:, 0] - x.sum(1)).square().mean(),
        lambda: float(model(torch.ones(1, 4))),
        torch.optim.lr_scheduler.StepLR(optimiser, 5), clip,
    )  # fmt: skip


def state(one: training.Task) -> dict[str, Any]:
    return {name: value.numpy().copy() for name, value in one.model.state_dict().items()}


def test_resumed_run_equals_an_uninterrupted_one() -> None:
    whole = task(CONFIG)
    history = training.run("t", CONFIG, whole)
    assert not whole.model.training and len(history.losses) == 3

    def interrupt(history: training.History) -> None:
        if len(history.losses) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.run("t", CONFIG, task(CONFIG), on_epoch=interrupt)
    assert training.checkpoint_path("t", CONFIG).is_file()
    epochs: list[int] = []
    again = task(CONFIG)
    resumed = training.run("t", CONFIG, again, on_epoch=lambda h: epochs.append(len(h.losses)))
    assert epochs == [3]
    assert (resumed.losses, resumed.held_out) == (history.losses, history.held_out)
    for name, value in state(whole).items():
        np.testing.assert_array_equal(state(again)[name], value, err_msg=name)
    assert not list(training.checkpoint_path("t", CONFIG).parent.iterdir())


def test_the_seed_decides() -> None:
    first, same, other = (
        training.run("t", config, task(config)).losses for config in (CONFIG, CONFIG, replace(CONFIG, seed=4))
    )
    assert first == same != other
    assert first[-1] < first[0]


def test_clipping_limits_the_step() -> None:
    free, clipped = (training.run("t", CONFIG, task(CONFIG, clip)).losses for clip in (None, 1e-9))
    assert clipped != free


def test_broken_checkpoint_is_named() -> None:
    path = training.checkpoint_path("t", CONFIG)
    path.parent.mkdir()
    torch.save({"model": {}}, path)
    with pytest.raises(DlcError, match="delete it to start over"):
        training.run("t", CONFIG, task(CONFIG))
    path.write_bytes(b"no archive")
    with pytest.raises(DlcError, match="delete it to start over"):
        training.run("t", CONFIG, task(CONFIG))


def test_report_gives_the_time_left() -> None:
    lines: list[str] = []
    show = training.epoch_report(lines.append, 4, "perplexity {:.1f}")
    show(training.History([2.5], [310.04], seconds=60))
    show(training.History([2.5, 2.0, 1.5, 1.0], [310.04] * 4, seconds=240))
    assert lines == [
        "epoch 1/4: loss 2.5000, perplexity 310.0, about 3.0 min left",
        "epoch 4/4: loss 1.0000, perplexity 310.0",
    ]


def test_weights_come_back_with_their_notes(tmp_path: Path) -> None:
    one, two = task(CONFIG), task(replace(CONFIG, seed=9))
    path = tmp_path / "new" / "w.safetensors"
    training.save_weights(one.model, CONFIG, training.History([0.5], [0.25], 12.34), path)
    training.load_weights(two.model, path)
    for name, value in state(one).items():
        np.testing.assert_array_equal(state(two)[name], value)
    notes = training.read_notes(path)
    assert notes == {
        "seed": 3, "epochs": 3, "threads": 1, "seconds": 12.3, "loss": 0.5, "held_out": 0.25,
        "torch": str(torch.__version__), "device": "cpu",
    }  # fmt: skip
    with pytest.raises(DlcError, match="does not hold weights of this network"):
        training.load_weights(nn.Linear(2, 2), path)
    (tmp_path / "bad").write_bytes(b"x")
    with pytest.raises(DlcError, match="does not hold weights with notes on their training"):
        training.read_notes(tmp_path / "bad")


def test_a_device_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DlcError, match="torch has no device 'cuda' here: "):
        training.seed_everything(training.Config(device="cuda"))


def test_a_batch_goes_where_the_network_is() -> None:
    network = torch.nn.Linear(2, 2, device="meta")
    batch = training.to_device_of(network, (torch.zeros(2), (torch.ones(1), None), 3))
    assert batch[0].device.type == batch[1][0].device.type == "meta" and batch[1][1:] == (None,) and batch[2] == 3
