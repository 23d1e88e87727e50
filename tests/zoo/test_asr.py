"""The speech family: sentences, frames, augmentation, decoding, the HMM baseline, training, and the committed model."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import dlc
from dlc import zoo as models
from dlc.cli.zoo import zoo
from dlc.errors import DlcError
from dlc.explain import read
from dlc.zoo import exporting
from dlc.zoo.asr import augment, data, evaluate, export, features, graphs, hmm, inference, model, sample, text, train
from dlc.zoo.asr.decoding import Beam, CharacterModel, greedy
from dlc.zoo.family import SampleOptions, TrainOptions
from dlc.zoo.models import OnnxModel

SMALL = model.Shape(layers=2, hidden=6, dropout=0.0)


def tone(frequency: float, seconds: float) -> np.ndarray:
    time = np.arange(int(seconds * features.RATE)) / features.RATE
    return 0.3 * np.sin(2 * np.pi * frequency * time)


def one_hot(labels: list[int], height: float = 9.0) -> np.ndarray:
    return (height * np.eye(len(text.ALPHABET))[labels]).astype(np.float32)


def utterances(count: int, seed: int = 0) -> data.Utterances:
    """Bursts of two bands, each of which stands for a letter."""
    generator = np.random.default_rng(seed)
    frames, texts = [], []
    for _ in range(count):
        letters = generator.integers(0, 2, 4)
        rows = generator.integers(20, 30, (60, features.BANDS))
        for place, letter in enumerate(letters):
            rows[5 + 14 * place : 13 + 14 * place, 20 * letter : 20 * letter + 15] += 100
        frames.append(rows.astype(np.uint8))
        texts.append("".join("ab"[letter] for letter in letters))
    return data.Utterances(tuple(frames), tuple(texts), ("nobody",) * count, np.full(count, 20, np.float32))


# --- sentences


def test_sentences_are_of_the_vocabulary() -> None:
    generator = np.random.default_rng(0)
    sentences = [text.draw_sentence(generator) for _ in range(3000)]
    assert {word for sentence in sentences for word in sentence.split()} == set(text.WORDS)
    assert all(sentence == " ".join(sentence.split()) for sentence in sentences)


@given(st.text(alphabet=text.ALPHABET[1:], min_size=1))
def test_characters_come_back(sentence: str) -> None:
    assert text.decode(text.encode(sentence)) == sentence


@pytest.mark.parametrize("sentence", ["o'clock", "Ten", "a_b"])
def test_other_characters_are_refused(sentence: str) -> None:
    with pytest.raises(DlcError, match="neither a-z nor a blank"):
        text.encode(sentence)


def test_committed_transcripts_and_excerpts_are_the_parts_beginnings() -> None:
    said = data.transcripts()
    calibration, test = data.load_excerpt("calibration"), data.load_excerpt("test")
    assert said[: len(calibration)] == calibration.texts
    assert not set(said) & set(test.texts)
    assert not set(test.voices) & set(calibration.voices)
    assert {word for sentence in said for word in sentence.split()} == set(text.WORDS)


# --- frames


def test_frames_show_the_frequency() -> None:
    pytest.importorskip("kaldi_native_fbank")
    loudest = [int(features.log_mel(tone(f, 0.5)).mean(0).argmax()) for f in (200, 500, 1000, 2000, 3500)]
    assert loudest == sorted(set(loudest)) and loudest[0] < 8 and loudest[-1] > 34


def test_a_hundred_frames_a_second_and_less_energy_of_quieter_sound() -> None:
    pytest.importorskip("kaldi_native_fbank")
    loud, quiet = (features.log_mel(gain * tone(1000, 1.0)) for gain in (1.0, 0.1))
    assert loud.shape == (98, features.BANDS)
    band = int(loud.mean(0).argmax())
    assert (loud[:, band].astype(int) - quiet[:, band]).mean() == pytest.approx(np.log(100) * features.STEPS, abs=1)


def test_too_short_a_sound_is_refused() -> None:
    pytest.importorskip("kaldi_native_fbank")
    with pytest.raises(DlcError, match="less than a window"):
        features.log_mel(np.zeros(100, np.float32))


def test_inputs_are_normalised_threes_of_frames() -> None:
    frames = utterances(1).frames[0][:59]
    x = features.inputs(frames)
    assert x.shape == (20, features.WIDTH) and x.dtype == np.float32
    rows = x.reshape(-1, features.BANDS)
    assert np.allclose(rows[:59].mean(0), 0, atol=1e-5) and np.allclose(rows[:59].std(0), 1, atol=1e-4)
    assert np.array_equal(rows[59], rows[58])
    assert np.allclose(rows[:59], features.normalise(frames))


def test_noise_has_the_ratio_asked_for() -> None:
    samples = tone(700, 1.0).astype(np.float32)
    noisy = data.add_noise(samples, 12.0, np.random.default_rng(1))
    silent = data.add_noise(samples, 300.0, np.random.default_rng(1))
    assert len(noisy) == len(silent) > len(samples)
    power = 10 * np.log10((samples**2).mean() / ((noisy - silent) ** 2).mean())
    assert power == pytest.approx(12, abs=0.1)


def test_parts_come_back_from_their_files(tmp_path: Path) -> None:
    made = utterances(3)
    data.save(made, tmp_path / "test.npz")
    found = data.load_part("test", tmp_path)
    assert found.texts == made.texts and found.voices == made.voices
    assert all(np.array_equal(a, b) for a, b in zip(found.frames, made.frames, strict=True))
    (tmp_path / "test.npz").write_bytes(b"nonsense")
    with pytest.raises(DlcError, match="holds no utterances"):
        data.load_part("test", tmp_path)


def test_synthesised_parts_share_neither_sentences_nor_voices(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("kaldi_native_fbank")
    pytest.importorskip("scipy")
    monkeypatch.setattr(data.voices, "_FLITE_SHARE", dict.fromkeys(data.PARTS, 0.0))
    made = data.synthesise({"train": (12, 1), "validation": (6, 2), "test": (6, 3)})
    assert [len(part) for part in made.values()] == [12, 6, 6]
    for one, other in itertools.combinations(made.values(), 2):
        assert not set(one.texts) & set(other.texts) and not set(one.voices) & set(other.voices)
    assert all(len(frames) > 20 for part in made.values() for frames in part.frames)


def test_unknown_voices_are_refused() -> None:
    pytest.importorskip("espeakng_loader")
    with pytest.raises(DlcError, match="no voice 'xx-nowhere'"):
        data.voices.speak("ten", data.voices.Speaker("espeak:xx-nowhere"))


# --- augmentation


def test_interpolation_is_linear() -> None:
    rows = np.array([[0.0, 10.0], [2.0, 20.0], [6.0, 0.0]], np.float32)
    found = augment.interpolate(rows, np.array([0.0, 0.5, 1.25, 2.0, 7.0]))
    assert np.allclose(found, [[0, 10], [1, 15], [3, 15], [6, 0], [6, 0]])


def test_augmentation_has_the_length_asked_for_and_is_seeded() -> None:
    frames = utterances(1).frames[0]
    found = [augment.augment(frames, 66, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert all(values.shape == blank.shape == (66, features.BANDS) for values, blank in found)
    assert all(np.isfinite(values).all() for values, _ in found)
    assert np.array_equal(found[0][0], found[1][0]) and not np.array_equal(found[0][0], found[2][0])


def test_batches_are_alike_in_length_and_miss_nobody() -> None:
    sizes = np.random.default_rng(0).integers(50, 500, 640)
    batches = train._alike(sizes, 20, 32, np.random.default_rng(1))
    assert sorted(np.concatenate(batches).tolist()) == list(range(640))
    assert max(np.ptp(sizes[batch]) for batch in batches) < 100
    means = [sizes[batch].mean() for batch in batches]
    assert means != sorted(means)


# --- decoding


def test_best_path_drops_repeats_and_blanks() -> None:
    b, a = text.ALPHABET.index("b"), text.ALPHABET.index("a")
    assert greedy(one_hot([0, b, b, 0, b, a, a, 0, 0])) == "bba"
    assert greedy(one_hot([0, 0, 0])) == ""
    assert greedy(one_hot([1, a, 1, 0, 1, b, 1])) == "a b"


def character_probability(language: CharacterModel, sentence: str) -> float:
    labels = tuple(text.encode(sentence).tolist())
    logs = [language.next(labels[:k])[label] for k, label in enumerate(labels)]
    return float(sum(logs) + language.next(labels)[-1])


def test_language_model_is_a_distribution_that_knows_its_sentences() -> None:
    language = CharacterModel.of(["turn on the light", "turn off the light", "ten"], order=5)
    assert np.exp(language.next(tuple(text.encode("tur"))))[1:].sum() == pytest.approx(1)
    assert character_probability(language, "turn on the light") > character_probability(language, "turn of the right")


def test_search_sums_over_all_paths() -> None:
    """With a beam that holds every prefix and no language model, the best prefix is that of the largest total."""
    generator = np.random.default_rng(3)
    language = CharacterModel.of(["ab"], order=2)
    for _ in range(5):
        logits = np.full((4, len(text.ALPHABET)), -40.0)
        logits[:, [0, 2, 3]] = generator.standard_normal((4, 3))
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        totals: dict[str, float] = {}
        for path in itertools.product([0, 2, 3], repeat=4):
            said = text.decode([k for k, _ in itertools.groupby(path) if k])
            totals[said] = totals.get(said, 0) + float(np.prod([shares[t, k] for t, k in enumerate(path)]))
        found = Beam(language, width=1000, weight=0.0, bonus=0.0).search(logits)
        assert found == max(totals, key=lambda said: totals[said])


def test_language_model_decides_what_the_sound_leaves_open() -> None:
    logits = one_hot([text.ALPHABET.index(c) for c in "t_e_n"])
    logits[2, text.ALPHABET.index("a")] = logits[2, text.ALPHABET.index("e")] + 0.1
    assert greedy(logits) == "tan"
    assert Beam(CharacterModel.of(["ten", "ten men"], order=4), weight=1.0).search(logits) == "ten"


# --- the baseline


def test_hmm_learns_two_words_and_their_order() -> None:
    made = utterances(40)
    words = {"a": "alpha", "b": "bravo"}
    said = [" ".join(words[letter] for letter in sentence) for sentence in made.texts]
    # Bursts of 8 frames are as long as the 8 states of these words.
    trained = hmm.train(made.frames[:30], said[:30])
    heard = [trained.recognise(frames) for frames in made.frames[30:]]
    assert np.mean([a == b for a, b in zip(heard, said[30:], strict=True)]) >= 0.7


def test_hmm_viterbi_finds_the_best_of_all_paths() -> None:
    generator = np.random.default_rng(5)
    units = {
        name: hmm.Unit(
            np.ones((states, 1)), generator.standard_normal((states, 1, 2)), np.ones((states, 1, 2)),
            generator.uniform(0.3, 0.7, states),
        )
        for name, states in (("x", 2), ("y", 1), (hmm.SILENCE, 1))
    }  # fmt: skip
    x = generator.standard_normal((6, 2))
    follow, first, last = generator.standard_normal((2, 2)), generator.standard_normal(2), generator.standard_normal(2)
    words, path = hmm._search(units, ["x", "y"], follow, first, last, x)

    def score(spans: list[tuple[str, int, int]]) -> float:
        total, said = 0.0, [name for name, _, _ in spans if name != hmm.SILENCE]
        for name, begin, end in spans:
            unit, length = units[name], end - begin
            emission = unit.log_likelihood(x[begin:end])
            cuts = itertools.combinations(range(1, length), len(unit.stay) - 1)
            chains = [np.diff([0, *cut, length]) for cut in cuts]
            total += max(
                sum(
                    emission[sum(chain[:s]) : sum(chain[: s + 1]), s].sum()
                    + (n - 1) * np.log(unit.stay[s]) + np.log(1 - unit.stay[s])
                    for s, n in enumerate(chain)
                )
                for chain in chains
            )  # fmt: skip
        numbers = ["xy".index(name) for name in said]
        order = sum(follow[a, b] for a, b in itertools.pairwise(numbers))
        return float(total + first[numbers[0]] + last[numbers[-1]] + order)

    best, candidates = -np.inf, 0
    for count in range(1, 7):
        for cut in itertools.combinations(range(1, 6), count - 1):
            marks = [0, *cut, 6]
            for names in itertools.product(("x", "y", hmm.SILENCE), repeat=count):
                silent = [name == hmm.SILENCE for name in names]
                spans = [(name, marks[k], marks[k + 1]) for k, name in enumerate(names)]
                if all(silent) or any(a and b for a, b in itertools.pairwise(silent)):
                    continue
                if all(end - begin >= len(units[name].stay) for name, begin, end in spans):
                    candidates += 1
                    best = max(best, score(spans))
    assert candidates > 50
    assert score(path) == pytest.approx(best)
    assert words == [name for name, _, _ in path if name != hmm.SILENCE]


# --- errors


def test_errors_count_words_and_characters() -> None:
    pytest.importorskip("jiwer")
    said, heard = ["turn on the light", "ten"], ["turn of light please", ""]
    assert evaluate.word_errors(said, heard).tolist() == [[3, 4], [1, 1]]
    assert evaluate.character_errors(said, heard)[1].tolist() == [3, 3]


# --- training and export


def test_training_learns_and_is_deterministic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLC_CACHE", str(tmp_path))
    made, watched = utterances(48), utterances(12, seed=1)
    config = train.TrainConfig(size="student", epochs=6, batch=8, peak_rate=1e-2)
    trained, history = train.fit(config, made, watched)
    assert history.losses[-1] < history.losses[0] / 2
    assert history.held_out[-1] < history.held_out[0]
    again, _ = train.fit(config, made, watched)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))


def test_imitation_draws_a_student_to_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLC_CACHE", str(tmp_path))
    made = utterances(24)
    torch.manual_seed(1)
    teacher = model.build("student").eval()
    config = train.TrainConfig(size="student", epochs=3, batch=8, peak_rate=1e-2, imitation=1.0)
    batch = train.collate([features.inputs(made.frames[0])], [text.encode(made.texts[0])])
    student, history = train.fit(config, made, made, teacher)
    assert history.losses[-1] < history.losses[0] / 2
    with torch.no_grad():
        before, after = (float(train.loss_of(m, batch, teacher, 1.0)) for m in (model.build("student"), student))
        assert float(train.loss_of(teacher, batch, teacher, 1.0)) == pytest.approx(0, abs=1e-5)
    assert after < before


def test_too_few_utterances_are_refused() -> None:
    with pytest.raises(DlcError, match="4 utterances are less than a batch of 16"):
        train.fit(train.TrainConfig(), utterances(4), utterances(4))


def test_padding_has_no_influence(monkeypatch: pytest.MonkeyPatch) -> None:
    network = model.Recogniser(SMALL).eval()
    x = torch.randn(2, 20, features.WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        both = network(x, torch.tensor([20, 11]))
        alone = network(x[1:, :11])
    assert torch.allclose(both[1, :11], alone[0], atol=1e-6)


def test_onnx_and_package_agree_with_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = model.Recogniser(SMALL).eval()
    proto = graphs.recogniser({name: value.numpy() for name, value in network.state_dict().items()}, {"seed": 0})
    path = tmp_path / "small.onnx"
    path.write_bytes(proto.SerializeToString())
    session = dlc.load(dlc.compile(str(path), cache=False))
    generator = np.random.default_rng(0)
    for batch, time in ((1, 7), (3, 12)):
        x = generator.standard_normal((batch, time, features.WIDTH), np.float32)
        lengths = np.array([time, time - 5, 2][:batch], np.int32)
        with torch.no_grad():
            expected = network(torch.from_numpy(x), torch.from_numpy(lengths).long()).numpy()
        for run in (OnnxModel(path).run, session.run):
            actual = run({data.INPUT: x, data.LENGTHS: lengths})[inference.OUTPUT]
            for row, steps in enumerate(lengths):
                assert np.abs(actual[row, :steps] - expected[row, :steps]).max() < 1e-5


def test_weights_are_exported_with_their_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLC_CACHE", str(tmp_path))
    config = train.TrainConfig(size="student", epochs=1, batch=8)
    trained, history = train.fit(config, utterances(8), utterances(4))
    train.training.save_weights(trained, config, history, tmp_path / "w.safetensors")
    assert "torch and ONNX agree" in export.export(tmp_path / "w.safetensors", tmp_path / "w.onnx")
    assert exporting.read_notes(tmp_path / "w.onnx", "asr")["size"] == "student"


def test_whole_trainings_are_kept_apart() -> None:
    direct = train.configure(TrainOptions("student", seed=3))
    assert train.kept(direct) != train.kept(replace(direct, imitation=0.5)) != train.kept(replace(direct, seed=4))


# --- the committed models


@pytest.mark.parametrize("path", [models.model_path("asr"), evaluate.student_path()])
def test_committed_models_hear_alike_in_batches_and_alone(path: Path) -> None:
    network, frames = OnnxModel(path), data.load_excerpt("test").frames[:5]
    together = inference.logits_of(network, frames)
    for one, logits in zip(frames, together, strict=True):
        (alone,) = inference.logits_of(network, [one])
        assert alone.shape == logits.shape and np.abs(alone - logits).max() < 1e-4


def test_committed_model_has_the_cards_error_rate() -> None:
    pytest.importorskip("jiwer")
    head = models.read_card("asr")
    score = evaluate.evaluate(OnnxModel(models.model_path("asr")), False, None)
    assert score.value == pytest.approx(head["embedded_value"], abs=0.01)


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_committed_model_compiles_to_native_loops(quantize: Any) -> None:
    package = dlc.compile("zoo:asr", quantize=quantize, calibration="zoo:asr" if quantize == "int8" else None)
    frames = data.load_excerpt("test").frames[:4]
    session = dlc.load(package)

    class Packaged:
        path, inputs = Path("asr.dlc"), {}
        run = staticmethod(session.run)

    heard = evaluate.recognise(Packaged(), frames)
    expected = evaluate.recognise(OnnxModel(models.model_path("asr")), frames)
    if quantize == "none":
        assert heard == expected
    loops = [row["kernel"] for row in read(package).nodes if "loop" in row["kernel"]]
    assert len(loops) == 6 and all("native loop" in kernel for kernel in loops)


def test_sampling_shows_both_decodings() -> None:
    lines = list(sample.sample(OnnxModel(models.model_path("asr")), SampleOptions(count=2)))
    assert len(lines) == 2
    assert all("best path:" in line and "beam:" in line for line in lines)


def test_sampling_refuses_other_characters() -> None:
    result = CliRunner().invoke(zoo, ["sample", "asr", "--prompt", "10 minutes!"])
    assert isinstance(result.exception, DlcError) and "neither a-z nor a blank" in str(result.exception)
