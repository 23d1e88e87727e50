"""The WaveNet family: codes and recordings, what it is compared with, the committed models, and generation."""

from __future__ import annotations

import hashlib
import wave
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import dlc
from dlc import zoo as models
from dlc.cli.zoo import zoo
from dlc.errors import DlcError
from dlc.zoo import cards, exporting
from dlc.zoo.family import SampleOptions
from dlc.zoo.models import OnnxModel
from dlc.zoo.wavenet import data, evaluate, graphs, linear, pictures, sample

DILATIONS = [1, 2, 4]
RESIDUAL, SKIP, BANDS = 8, 16, 5


def small_weights(bands: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a small network, by their names from training."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int, gain: float = 1.0) -> np.ndarray:
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 16
        return (rng.standard_normal(shape) * gain / fan**0.5).astype(np.float32)

    weights = {"embedding.weight": rng.standard_normal((data.LEVELS, RESIDUAL)).astype(np.float32)}
    for n in range(len(DILATIONS)):
        sizes = {"mix": (2 * RESIDUAL, RESIDUAL, 2), "skip": (SKIP, RESIDUAL, 1), "res": (RESIDUAL, RESIDUAL, 1)}
        for name, shape in sizes.items():
            weights[f"layers.{n}.{name}.weight"] = draw(*shape)
            weights[f"layers.{n}.{name}.bias"] = draw(shape[0])
        if bands:
            weights[f"layers.{n}.condition.weight"] = draw(2 * RESIDUAL, bands, 1)
    for name, outputs in (("head", SKIP), ("out", data.LEVELS)):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = draw(outputs, SKIP, 1, gain=4), draw(outputs)
    return weights


def tone(frequency: float, seconds: float, seed: int = 0) -> np.ndarray:
    time = np.arange(int(seconds * data.RATE)) / data.RATE
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return 0.4 * np.sin(2 * np.pi * frequency * time) + 0.003 * noise


class FakeModel:
    def __init__(self, path: str, *names: str) -> None:
        self.path = Path(path)
        self.inputs: Any = {name: (1, "T") for name in (data.INPUT, *names)}

    def run(self, feed: Any) -> dict[str, np.ndarray]:
        raise AssertionError


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A folder as the package has it, with short tones."""
    folder = tmp_path / "recordings"
    names = [*data.PACKAGES[0].files, "silence/1.wav", *(f"more-{n}.wav" for n in range(12))]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        data.write_wav(folder / name, tone(200 + 30 * number, 0.2, number))
    return folder


# --- codes and recordings


def test_every_code_is_that_of_its_sample() -> None:
    codes = np.arange(data.LEVELS, dtype=np.uint8)
    np.testing.assert_array_equal(data.encode(data.decode(codes)), codes)
    assert (np.diff(data.decode(codes)) > 0).all()
    assert data.encode(np.zeros(1))[0] == data.SILENCE


@given(st.floats(-1, 1))
def test_the_code_is_the_nearest_on_the_companded_scale(x: float) -> None:
    code = int(data.encode(np.array([x]))[0])
    low, high = data.decode(np.array([code - 0.5])), data.decode(np.array([code + 0.5]))
    assert low[0] - 1e-6 <= x <= high[0] + 1e-6


def test_recordings_are_read_as_they_were_written(tmp_path: Path) -> None:
    sound = tone(440, 0.1)
    data.write_wav(tmp_path / "a.wav", sound)
    np.testing.assert_allclose(data.read_wav(tmp_path / "a.wav"), sound, atol=1e-4)


def test_other_recordings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "no.wav").write_bytes(b"no sound")
    with pytest.raises(DlcError, match=r"no\.wav is not a WAV file"):
        data.read_wav(tmp_path / "no.wav")
    with wave.open(str(tmp_path / "fast.wav"), "wb") as file:
        file.setparams((2, 2, 16000, 0, "NONE", ""))
    with pytest.raises(DlcError, match=r"fast\.wav has 16000 Hz, 2 bytes a sample, 2 channels, not 8000 Hz, 2 and 1"):
        data.read_wav(tmp_path / "fast.wav")


def test_parts_share_no_prompt_and_have_no_silence(recordings: Path) -> None:
    parts = [set(data.load_part(part, recordings)) for part in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 17
    assert all(parts) and "digits/1" in set.union(*parts) and "silence/1" not in set.union(*parts)


def test_unknown_prompt_is_named(recordings: Path) -> None:
    with pytest.raises(DlcError, match="no prompt 'nothing'"):
        data.load_prompt("nothing", recordings)


def test_the_context_of_a_code_is_what_is_before_it() -> None:
    assert data.context(np.array([[1, 2, 3]], np.uint8)).tolist() == [[data.SILENCE, 1, 2]]


def test_mel_frames_follow_the_sound() -> None:
    frames = data.mel_frames(data.encode(np.concatenate([tone(300, 0.1), tone(2500, 0.1)])))
    assert frames.shape == (data.BANDS, 20) and frames.dtype == np.float32
    loudest = frames.argmax(0)
    assert (loudest[2:8] < 6).all() and (loudest[12:18] > 15).all()
    assert data.upsample(frames, 1590).shape == (data.BANDS, 1590)
    assert data.mel_frames(np.zeros(81, np.uint8)).shape == (data.BANDS, 2)


@pytest.mark.parametrize(("name", "shape"), [("test", (24, 8000)), ("calibration", (16, 4000))])
def test_excerpt_is_the_chosen_one(name: str, shape: tuple[int, int]) -> None:
    assert data.load_excerpt(name).shape == shape
    try:
        chosen = data.choose_excerpt(name)
    except DlcError:
        pytest.skip("the recordings are missing: dlc zoo fetch wavenet")
    np.testing.assert_array_equal(chosen["codes"], data.load_excerpt(name))


def test_unknown_excerpt_lists_the_known() -> None:
    with pytest.raises(DlcError, match="known: test, calibration"):
        data.load_excerpt("train")


# --- what it is compared with, and the picture


def test_linear_prediction_is_a_distribution_and_finds_a_resonance() -> None:
    rng = np.random.default_rng(0)
    sound = np.zeros(8000)
    for t in range(2, len(sound)):  # a resonance at 500 Hz
        sound[t] = 1.8 * sound[t - 1] - 0.97 * sound[t - 2] + 0.01 * rng.laplace()
    codes = data.encode(np.clip(sound / np.abs(sound).max(), -1, 1))
    predictor = linear.fit([codes[:6000]])
    counts = np.bincount(codes, minlength=data.LEVELS) + 1.0
    assert predictor.bits(codes[6000:]).mean() < -np.log2(counts / counts.sum())[codes[6000:]].mean() - 1
    mass = 0.0
    for last in range(data.LEVELS):
        mass += 2.0 ** -predictor.bits(np.append(codes[:100], last).astype(np.uint8))[-1]
    assert abs(mass - 1) < 1e-9


def test_spectrograms_are_png(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed: pip install 'dlc[image]'")
    pictures.write_spectrograms(tmp_path / "s.png", [tone(1000, 0.5), tone(3000, 0.25)])
    pixels = np.asarray(image.open(tmp_path / "s.png"))
    assert pixels.shape == (2 * 258 + 6, 101) and pixels.dtype == np.uint8
    darkest = pixels[:258, 50].argmin()  # two rows a frequency of 31.25 Hz, 4 kHz at the top
    assert abs((257 - darkest) / 2 * 31.25 - 1000) < 50
    assert (pixels[270:, 60:] == 255).all()  # the shorter sound is filled up with white


# --- the committed models and the card


@pytest.mark.parametrize("name", ["wavenet", "mel", "lstm"])
def test_committed_models_are_plain_and_carry_their_notes(name: str) -> None:
    model = onnx.load(evaluate.model_file(name))
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["codes", "mel"][: 2 if name == "mel" else 1]
    assert [d.dim_param or d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [1, 256, "T"]
    assert exporting.read_notes(evaluate.model_file(name), "wavenet")["size"] == {"wavenet": "plain"}.get(name, name)


def test_card_has_the_figures_of_all_models() -> None:
    card = models.read_card("wavenet")
    assert set(card["bits"]) == {"linear", "wavenet", "mel", "lstm"}
    assert card["value"] == card["bits"]["wavenet"] < card["bits"]["linear"]
    assert (models.model_path("wavenet").with_name("spectrograms.png")).read_bytes().startswith(b"\x89PNG")


def test_committed_model_reaches_its_embedded_figure() -> None:
    pytest.importorskip("onnxruntime")
    score = evaluate.evaluate(OnnxModel(models.model_path("wavenet")), False, None)
    assert abs(score.value - models.read_card("wavenet")["embedded_value"]) <= 1e-3
    assert score.details["count"] == 24 * 8000


def test_a_file_without_notes_is_named(tmp_path: Path) -> None:
    onnx.save(graphs.likelihood(small_weights(), DILATIONS), tmp_path / "m.onnx")
    with pytest.raises(DlcError, match=r"m\.onnx has no notes on its training"):
        exporting.read_notes(tmp_path / "m.onnx", "wavenet")


def test_bits_are_those_of_the_logits() -> None:
    class Uniform(FakeModel):
        def run(self, feed: Any) -> dict[str, np.ndarray]:
            return {graphs.OUTPUT: np.zeros((1, 256, feed[data.INPUT].shape[1]), np.float32)}

    rows = evaluate.score_rows(Uniform("u.onnx"), [np.arange(100, dtype=np.uint8), np.zeros(7, np.uint8)])
    np.testing.assert_allclose(rows, [[800, 100], [56, 7]], rtol=1e-5)


# --- generation


def run_onnx(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[-1])


@pytest.mark.parametrize("bands", [0, BANDS])
def test_generation_draws_from_the_likelihood(bands: int) -> None:
    """The likelihood of the generated codes, given all at once, has each code where its random number is."""
    weights, steps = small_weights(bands), 200
    rng = np.random.default_rng(1)
    uniform = rng.random(steps, np.float32)
    feed, mel = {graphs.UNIFORM: uniform}, rng.standard_normal((bands, 3)).astype(np.float32)
    if bands:
        feed[data.MEL_INPUT] = mel
    codes = run_onnx(graphs.generator(weights, DILATIONS), feed)[:, 0]
    given_codes: dict[str, np.ndarray] = {data.INPUT: data.context(codes)[None]}
    if bands:
        given_codes[data.MEL_INPUT] = data.upsample(mel, steps)[None]
    logits = run_onnx(graphs.likelihood(weights, DILATIONS), given_codes)[0].astype(np.float64)
    shares = np.exp(logits - logits.max(0))
    high = np.cumsum(shares / shares.sum(0), 0)[codes, np.arange(steps)]
    low = high - (shares / shares.sum(0))[codes, np.arange(steps)]
    assert len(set(codes.tolist())) > 20
    assert (low - 1e-5 <= uniform).all() and (uniform <= high + 1e-5).all()


def test_sample_compiles_the_loop_and_writes_a_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(sample, "_SECONDS", 0.05)
    weights = small_weights()
    onnx.save(graphs.likelihood(weights, DILATIONS), tmp_path / "m.onnx")
    sounds = []
    for seed in (3, 3, 4):
        arguments = ["--onnx", str(tmp_path / "m.onnx"), "--count", "2", "-o", str(tmp_path / "a.wav")]
        result = CliRunner().invoke(zoo, ["sample", "wavenet", *arguments, "--seed", str(seed)])
        assert result.exit_code == 0, result.output
        assert "times real time on one core" in result.output
        sounds.append(data.read_wav(tmp_path / "a.wav"))
    assert len(sounds[0]) == 800
    np.testing.assert_array_equal(sounds[0], sounds[1])
    assert (sounds[0] != sounds[2]).any()
    uniform = np.random.default_rng(3).random(400, np.float32)
    codes = run_onnx(graphs.generator(weights, DILATIONS), {graphs.UNIFORM: uniform})[:, 0]
    np.testing.assert_allclose(sounds[0][:400], data.decode(codes), atol=1e-4)


@pytest.mark.parametrize(
    ("model", "out", "text"),
    [
        (FakeModel("m.onnx"), None, "give --out FILE.wav"),
        (FakeModel("m.dlc"), Path("a.wav"), "not from m.dlc: use --onnx"),
        (FakeModel("m.onnx", data.MEL_INPUT), Path("a.wav"), "give --prompt NAME"),
    ],
)
def test_sample_says_what_it_needs(model: FakeModel, out: Path | None, text: str) -> None:
    with pytest.raises(DlcError, match=text):
        list(sample.sample(model, SampleOptions(out=out)))


def test_another_model_makes_no_generation() -> None:
    with pytest.raises(DlcError, match="it is no WaveNet of this family"):
        graphs.read_likelihood(models.model_path("vision"))


def test_stream_gives_what_the_whole_gives() -> None:
    package = dlc.compile(graphs.likelihood(small_weights(), DILATIONS), stream=True)
    session = dlc.load(package)
    codes = np.random.default_rng(0).integers(0, data.LEVELS, (1, 40))
    whole = session.run({data.INPUT: codes})[graphs.OUTPUT]
    stream = session.stream()
    ends = [0, 1, 2, 9, 40]
    parts = [stream.run({data.INPUT: codes[:, a:b]})[graphs.OUTPUT] for a, b in pairwise(ends)]
    np.testing.assert_allclose(np.concatenate(parts, 2), whole, atol=1e-5)


# --- the card's writing


def test_card_is_written_from_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "model_path", lambda name: tmp_path / "wavenet.onnx")
    (tmp_path / "wavenet.onnx").write_bytes(models.model_path("wavenet").read_bytes())
    rng = np.random.default_rng(0)
    samples = rng.uniform(1e4, 2e4, 30)
    bits = {"linear": 6.0, "lstm": 5.0, "wavenet": 5.1, "mel": 4.0, "none": 5.0, "int8": 5.2, "onnx": 5.0}
    rows = {name: np.stack([value * samples, samples], 1) for name, value in bits.items()}
    speeds = {"wavenet": evaluate.Speed(4000.0), "mel": evaluate.Speed(9000.0)}
    chosen = {name: rows[name] for name in ("linear", "lstm", "wavenet", "mel")}
    head = cards.read_head(cards.write_card(evaluate._card(chosen, rows, speeds, 1_234_567)))
    assert [claim["met"] for claim in head["claims"]] == [True, False, True, False, False]
    assert "1,234,567" in (tmp_path / "card.md").read_text()
    assert abs(head["value"] - 5.1) < 1e-9 and head["samples_per_second"]["wavenet"] == 4000


def test_excerpts_have_not_moved() -> None:
    digests = [hashlib.sha256(data.load_excerpt(name).tobytes()).hexdigest()[:16] for name in ("test", "calibration")]
    assert digests == ["9254590d5fc42265", "0b1d2326a33754ed"]
