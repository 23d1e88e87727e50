"""The neural language model: trees, output layers and losses against their definitions, training, ONNX, packages."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import dlc
from dlc import zoo as models
from dlc.cli.zoo import zoo
from dlc.errors import DlcError
from dlc.zoo.models import OnnxModel
from dlc.zoo.ngram import data as brown
from dlc.zoo.ngram import smoothing
from dlc.zoo.ngram.counts import count
from dlc.zoo.ngram.evaluate import score_stream
from dlc.zoo.ngram.model import perplexity
from dlc.zoo.nnlm import data, picture, tree
from dlc.zoo.nnlm.shortlist import tail_log10, tail_masses
from tests.zoo import ngrams
from tests.zoo.test_ngram import needs_corpus

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'dlc[zoo]'")

from dlc.zoo.nnlm import distill, export, output, train  # noqa: E402
from dlc.zoo.nnlm.model import LanguageModel, Shape  # noqa: E402

#: Eleven words in four categories; the first does not occur.
WORDS = tree.Words(np.array([0, 2, 2, 1, 3, 1, 1, 0, 2, 1, 1]), np.array([0, 9, 1, 4, 4, 7, 2, 30, 3, 1, 5]))
IDS = np.random.default_rng(0).choice(11, 700, p=WORDS.share).astype(np.int32)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(zoo, arguments)


def small(size: str) -> Shape:
    return replace(train.shape_of(size), width=6, hidden=8, listed=4, samples=50)


def network(size: str) -> LanguageModel:
    """One with weights large enough to matter."""
    torch.manual_seed(1)
    model = LanguageModel(WORDS, small(size)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of the tests' own; the data stay where they are."""
    found = brown.PACKAGES[0]
    folder = train.cache_dir() / "data"
    monkeypatch.setenv("DLC_CACHE", str(tmp_path / "cache"))
    if (folder / found.registry).is_dir():
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "data").symlink_to(folder)


# --- words and trees


def test_samples_are_the_excerpts_windows() -> None:
    rows = data.samples("test")["ngram"]
    ids = brown.load_excerpt("test")
    assert rows.shape == (19_995, 6) and rows.dtype == np.int64
    np.testing.assert_array_equal(rows[7], ids[7:13])


@needs_corpus
def test_committed_counts_are_the_corpus() -> None:
    words, corpus = tree.load_words(), brown.load_corpus()
    np.testing.assert_array_equal(words.count, np.bincount(corpus.part("train"), minlength=len(corpus.words)))
    assert len(np.unique(words.category)) == words.category.max() + 1 == 500


vocabularies = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 50)), min_size=2, max_size=40).map(
    lambda pairs: tree.Words(*np.array(pairs).T)
)


@given(vocabularies, st.integers(1, 6))
def test_classes_are_parts_of_categories(words: tree.Words, widest: int) -> None:
    found = tree.classes(words, widest)
    every = np.arange(len(words.count))
    np.testing.assert_array_equal(found.order[found.start[found.of] + found.slot], every)
    assert (found.slot < found.size[found.of]).all() and found.size.max() <= widest
    assert found.size.sum() == len(every)
    for members in np.split(found.order, found.start[1:]):
        assert len(set(words.category[members])) == 1
    whole = np.unique(words.category, return_counts=True)[1]
    assert len(found.size) == sum(-(-size // widest) for size in whole.tolist())


@given(vocabularies)
def test_paths_form_one_binary_tree(words: tree.Words) -> None:
    found = tree.paths(words)
    lengths = np.abs(found.sign).sum(1)
    assert (0.5**lengths).sum() == 1  # Kraft: every path has its leaf and there is no other
    routes = {
        tuple(zip(n[:length].tolist(), s[:length].tolist(), strict=True))
        for n, s, length in zip(found.node, found.sign, lengths.tolist(), strict=True)
    }
    assert len(routes) == len(words.count)
    parents: dict[int, tuple[tuple[int, int], ...]] = {}  # one way leads to each node
    for route in routes:
        for depth, (node, _) in enumerate(route):
            assert parents.setdefault(node, route[:depth]) == route[:depth]
    assert sorted(parents) == list(range(len(words.count) - 1))


def test_frequent_words_have_short_paths() -> None:
    words = tree.load_words()
    lengths = np.abs(tree.paths(words).sign).sum(1)
    entropy = -(words.share * np.log2(words.share)).sum()
    assert entropy <= (words.share * lengths).sum() <= entropy + 1


@pytest.mark.parametrize(("weights", "cut"), [([1, 1], 1), ([5, 1, 1], 1), ([1, 1, 5], 2), ([2, 2, 2, 2], 2)])
def test_rows_are_cut_into_equal_halves(weights: list[float], cut: int) -> None:
    assert tree.halve(np.array(weights, float)) == cut


def test_like_categories_become_neighbours() -> None:
    generator = np.random.default_rng(0)
    pairs = [(0, 3), (1, 4), (0, 4), (1, 3), (2, 5)]  # 0 and 1 go before 3 and 4, 2 before 5
    stream = np.concatenate([pairs[i] for i in generator.integers(0, 5, 4000)])
    number = tree.arrange(stream)
    assert sorted(number) == list(range(6))
    assert abs(number[0] - number[1]) == abs(number[3] - number[4]) == 1


# --- output layers


@pytest.mark.parametrize("size", ["full", "shortlist", "hsoftmax", "binary"])
def test_probabilities_sum_to_one(size: str) -> None:
    layer = network(size).output
    features = torch.randn(5, 6)
    with torch.no_grad():
        total = sum(layer.log_prob(features, torch.full((5,), word)).double().exp() for word in range(11))
    np.testing.assert_allclose(total.numpy(), 1, atol=1e-6)


@pytest.mark.parametrize("size", ["full", "shortlist", "hsoftmax", "binary"])
def test_layers_begin_with_the_unigram_distribution(size: str) -> None:
    layer = LanguageModel(WORDS, small(size)).output
    with torch.no_grad():
        log = layer.log_prob(torch.zeros(11, 6), torch.arange(11))
    np.testing.assert_allclose(log.exp().numpy(), WORDS.share, rtol=1e-5)


def test_multiply_adds_are_the_rows_read() -> None:
    word = torch.tensor([4, 7])
    costs = {size: network(size).output.multiply_adds(word).tolist() for size in ("full", "shortlist", "binary")}
    assert costs["full"] == [66, 66] and costs["shortlist"] == [30, 30]
    assert costs["binary"] == [6 * int(np.abs(row).sum()) for row in tree.paths(WORDS).sign[[4, 7]]]
    assert network("hsoftmax").output.multiply_adds(word).tolist() == [4 * 6 + 6, 4 * 6 + 2 * 6]


def drawn(layer: output.FullSoftmax, features: torch.Tensor, word: torch.Tensor) -> tuple[float, np.ndarray]:
    """The loss, and the samples that it took."""
    torch.manual_seed(5)
    loss = float(layer.loss(features, word).detach())
    torch.manual_seed(5)
    return loss, torch.multinomial(layer.noise, layer.samples, replacement=True).numpy()


@pytest.mark.parametrize("size", ["importance", "nce"])
def test_sampled_losses_are_their_definitions(size: str) -> None:
    layer = network(size).output
    assert isinstance(layer, output.FullSoftmax)
    features, word = torch.randn(7, 6), torch.randint(0, 11, (7,))
    loss, samples = drawn(layer, features, word)
    scores = (features @ layer.rows.T + layer.bias).detach().double().numpy()
    noise = WORDS.share
    terms = []
    for s, w in zip(scores, word.tolist(), strict=True):
        if size == "importance":
            others = [np.exp(s[j]) / (len(samples) * noise[j]) for j in samples if j != w]
            terms.append(np.log(np.exp(s[w]) + sum(others)) - s[w])
        else:
            ratio = np.exp(s) / (len(samples) * noise)
            terms.append(-np.log(ratio[w] / (1 + ratio[w])) + sum(np.log(1 + ratio[j]) for j in samples))
    assert loss == pytest.approx(np.mean(terms), rel=1e-4)


def test_importance_sampling_approaches_the_likelihood() -> None:
    torch.manual_seed(0)
    layer = output.FullSoftmax(WORDS, 6, "importance", 20_000)
    features, word = torch.randn(50, 6), torch.from_numpy(IDS[:50].astype(np.int64))
    with torch.no_grad():
        likelihood = float(-layer.log_prob(features, word).mean())
        assert float(layer.loss(features, word)) == pytest.approx(likelihood, rel=0.01)


# --- the short list's tail


@pytest.mark.parametrize("order", [2, 3, 4])
def test_tail_is_shared_out_whole(order: int) -> None:
    text = ngrams.random_texts(0, 7)
    model = smoothing.kneser_ney(count([np.array(t) for t in text], 7, order))
    tail = np.array([True, False, True, False, False, True, True])
    ids = np.random.default_rng(1).integers(0, 7, 40).astype(np.int32)
    rows = brown.windows(ids, order)
    every = np.stack([model.score(np.concatenate([rows[:, :-1], np.full((len(rows), 1), w)], 1)) for w in range(7)])
    mass = (10.0**every)[tail].sum(0)
    expected = np.where(tail[rows[:, -1]], model.score(rows) - np.log10(mass), 0)
    np.testing.assert_allclose(tail_log10(model, tail, ids), expected, atol=1e-9)
    assert tail_masses(model, np.ones(7, bool))[0] == pytest.approx(1)


# --- training


CONFIG = train.TrainConfig(epochs=4, words=700, held_out=100, batch=64)


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_SHAPES", {size: small(size) for size in train.SIZES})


@pytest.mark.parametrize("size", train.SIZES)
def test_training_lowers_the_loss(size: str, little: None) -> None:
    order = np.tile(np.arange(10, dtype=np.int32), 70)  # each word tells the next
    config = replace(CONFIG, size=size, epochs=40, peak_rate=0.02)
    _, history = train.fit(config, WORDS, order, order)
    assert history.losses[-1] < 0.7 * history.losses[0]
    assert history.held_out[-1] < 6 < history.held_out[0]


@pytest.mark.parametrize("size", ["nce", "lstm"])
def test_resumed_training_equals_an_uninterrupted_one(size: str, little: None) -> None:
    config = replace(CONFIG, size=size)
    whole, _ = train.fit(config, WORDS, IDS, IDS)

    def interrupt(history: train.training.History) -> None:
        if len(history.losses) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.fit(config, WORDS, IDS, IDS, on_epoch=interrupt)
    resumed, history = train.fit(config, WORDS, IDS, IDS)
    assert len(history.losses) == 4
    for name, value in whole.state_dict().items():
        np.testing.assert_array_equal(resumed.state_dict()[name].numpy(), value.numpy(), err_msg=name)


def test_the_distilled_loss_is_its_definition() -> None:
    """The words' likelihood, and the cross-entropy with the teacher, of the classes and within the word's class."""
    teacher, student = network("hsoftmax"), LanguageModel(WORDS, small("student")).eval()
    context, word = torch.randint(0, 11, (9, 5)), torch.randint(0, 11, (9,))
    found = tree.classes(WORDS)
    every = torch.arange(11)
    with torch.no_grad():
        loss = float(distill.imitating_loss(teacher, 0.25)(student, context, word))
        p, q = (
            np.exp([[float(m(context[n : n + 1], w[None])) for w in every] for n in range(9)])
            for m in (teacher, student)
        )
    terms = []
    for row, w in enumerate(word.tolist()):
        of_class = [np.bincount(found.of, each[row]) for each in (p, q)]
        own = found.of == found.of[w]
        within = [each[row][own] / each[row][own].sum() for each in (p, q)]
        towards_teacher = -sum((a * np.log(b)).sum() for a, b in (of_class, within))
        terms.append(0.25 * towards_teacher - 0.75 * np.log(q[row, w]))
    assert loss == pytest.approx(np.mean(terms), rel=1e-4)


@needs_corpus
def test_quick_distillation_by_the_verb(tmp_path: Path) -> None:
    result = invoke("distill", "nnlm", "--quick", "--out", str(tmp_path / "s.onnx"))
    assert result.exit_code == 0, result.output
    assert "training the teacher" in result.output
    losses = [float(line.split(": loss ")[1].split(",")[0]) for line in result.output.splitlines() if ": loss " in line]
    assert losses[-1] < losses[8]  # the student's follow the teacher's eight
    assert (tmp_path / "s.onnx").is_file()


def test_too_few_words_are_refused() -> None:
    with pytest.raises(ValueError, match="100 words are less than 4 batches of 64"):
        train.fit(CONFIG, WORDS, IDS[:100], IDS)


@pytest.mark.parametrize("size", ["hsoftmax", "lstm"])
def test_a_stream_is_scored_alike_in_any_parts(size: str) -> None:
    model = network(size)
    scores = [train.score_stream(model, IDS[:60], batch) for batch in (7, 100)]
    assert len(scores[0]) == 55
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)


@needs_corpus
def test_quick_training_by_the_verb(tmp_path: Path) -> None:
    outputs = []
    for name in ("a", "b"):
        out = str(tmp_path / f"{name}.onnx")
        result = invoke("train", "nnlm", "--quick", "--size", "binary", "--seed", "3", "--out", out)
        assert result.exit_code == 0, result.output
        outputs.append((tmp_path / f"{name}.onnx").read_bytes())
    assert outputs[0] == outputs[1]
    losses = [float(line.split(": loss ")[1].split(",")[0]) for line in result.output.splitlines() if ": loss " in line]
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert not train.kept("binary", 8).exists()


# --- ONNX and packages


@pytest.mark.parametrize("size", ["full", "shortlist", "hsoftmax", "binary", "lstm"])
def test_exported_and_compiled_probabilities_are_torchs(size: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert export.export_model(network(size), tmp_path / "m.onnx") <= 1e-4
    model = OnnxModel(tmp_path / "m.onnx")
    ((batch, length),) = model.inputs.values()
    assert batch == "N" and length == (33 if size == "lstm" else 6)
    rows = np.random.default_rng(2).integers(0, 11, (9, length))
    session = dlc.load(dlc.compile(tmp_path / "m.onnx"))
    np.testing.assert_allclose(session.run({"ngram": rows})["log10"], model.run({"ngram": rows})["log10"], atol=1e-4)


def test_export_refuses_other_weights(tmp_path: Path) -> None:
    from dlc.zoo import training

    config = training.Config()
    training.save_weights(torch.nn.Linear(2, 2), config, training.History([1.0], [1.0]), tmp_path / "w.safetensors")
    weights, out = str(tmp_path / "w.safetensors"), str(tmp_path / "m.onnx")
    error = invoke("export", "nnlm", "--weights", weights, "-o", out).exception
    assert isinstance(error, DlcError)
    assert "does not hold weights of this family" in str(error)
    assert not (tmp_path / "m.onnx").exists()


def test_committed_model_reaches_its_embedded_figure() -> None:
    pytest.importorskip("onnxruntime")
    head = models.read_card("nnlm")
    value = perplexity(score_stream(OnnxModel(models.model_path("nnlm")), brown.load_excerpt("test")))
    assert value == pytest.approx(head["embedded_value"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "int8", "int8-dynamic"])
def test_packages_of_the_committed_model(mode: str, tmp_path: Path) -> None:
    calibration = data.samples("calibration") if mode == "int8" else None
    dlc.compile("zoo:nnlm", quantize=mode, calibration=calibration).save(tmp_path / "m.dlc")
    result = invoke("eval", "nnlm", "--package", str(tmp_path / "m.dlc"), "--json")
    assert result.exit_code == 0, result.output
    value = json.loads(result.output)["value"]
    assert value == pytest.approx(models.read_card("nnlm")["embedded_value"], rel=1e-5 if mode == "none" else 0.01)


def test_sample_writes_sentences() -> None:
    pytest.importorskip("onnxruntime")
    result = invoke("sample", "nnlm", "--count", "1", "--prompt", "The", "--seed", "1")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("The ")


# --- embeddings


def test_neighbours_are_by_cosine() -> None:
    vectors = np.array([[1, 0], [5, 1], [0, 1], [-1, 0.1]])
    assert picture.neighbours(vectors, ["a", "b", "c", "d"], "a", 2) == ["b", "c"]


def test_principal_components_are_those_of_the_covariance() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 5)) * [1, 4, 1, 2, 1]
    points = picture.principal_components(rows)
    np.testing.assert_allclose(np.cov(points.T), np.diag(np.linalg.eigvalsh(np.cov(rows.T))[:-3:-1]), atol=1e-9)


def test_picture_writes_the_words_there_are() -> None:
    words = ["<unk>", "Monday", "John", "small", "other"]
    root = ElementTree.fromstring(picture.draw(np.random.default_rng(0).standard_normal((5, 4)), words))
    texts = [element.text for element in root if element.tag.endswith("text")]
    assert texts == ["Monday", "John", "small", *picture.GROUPS]
