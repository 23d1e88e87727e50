"""The mixture of experts: texts, the layer and its loss against their definitions, training, ONNX, the card."""

from __future__ import annotations

import gzip
import json
import struct
import xml.etree.ElementTree as ElementTree
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import dlc
from dlc import explain
from dlc import zoo as models
from dlc.cli.zoo import zoo
from dlc.errors import DlcError
from dlc.zoo import measured
from dlc.zoo.family import TrainOptions
from dlc.zoo.measured import Measured
from dlc.zoo.models import OnnxModel
from dlc.zoo.moe import data, evaluate, picture, texts

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'dlc[zoo]'")

from dlc.zoo.moe import export, train  # noqa: E402
from dlc.zoo.moe.model import Experts, LanguageModel, Shape  # noqa: E402


def texts_missing() -> bool:
    try:
        data.read_tokens()
    except DlcError:
        return True
    return False


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(zoo, arguments)


@pytest.fixture
def corpus() -> data.Corpus:
    """Each kind counts upwards in a range of its own, so that the context tells the word."""
    places = np.arange(42_000)
    return data.Corpus({kind: (100 * n + places % 50).astype(np.uint16) for n, kind in enumerate(data.KINDS)})


# --- texts


def r_strings(*strings: bytes) -> bytes:
    head = b"X\n" + struct.pack(">iii", 3, 0x40201, 0x30500) + struct.pack(">i", 5) + b"UTF-8"
    lines = b"".join(struct.pack(">ii", 0x40009, len(string)) + string for string in strings)
    return head + struct.pack(">ii", 16, len(strings)) + lines


def block(content: bytes) -> bytes:
    return struct.pack(">i", len(content)) + zlib.compress(content)


def test_r_data_are_vectors_of_lines(tmp_path: Path) -> None:
    (tmp_path / "Rdata.rdb").write_bytes(block(r_strings(b"EMMA", b"", b"by J. A.")) + block(r_strings(b"Persuasion")))
    assert texts.read_austen(tmp_path) == "EMMA\n\nby J. A.\nPersuasion"


@pytest.mark.parametrize("content", [b"nothing", block(b"X\n short"), block(r_strings(b"a")[:-9] + b"123456789")])
def test_other_r_data_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "Rdata.rdb").write_bytes(content)
    with pytest.raises(DlcError, match=r"Rdata\.rdb does not hold R's vectors of strings"):
        texts.read_austen(tmp_path)


def write_bible(folder: Path, *blocks: str) -> None:
    packed = [zlib.compress(text.encode()) for text in blocks]
    starts = np.cumsum([0, *map(len, packed)])
    index = [struct.pack("<III", start, len(p), 0) for start, p in zip(starts, packed, strict=False)]
    for testament in ("ot", "nt"):
        (folder / f"{testament}.bzs").write_bytes(b"".join(index))
        (folder / f"{testament}.bzz").write_bytes(b"".join(packed))


def test_bible_loses_marks_notes_and_titles(tmp_path: Path) -> None:
    write_bible(
        tmp_path, '<title type="main">Genesis</title><w lemma="x">In</w> the', "<note>see</note>beginning &amp; <q/>"
    )
    assert texts.read_bible(tmp_path).split() == ["In", "the", "beginning", "&", "In", "the", "beginning", "&"]


def test_broken_bible_is_named(tmp_path: Path) -> None:
    write_bible(tmp_path, "In the beginning")
    (tmp_path / "nt.bzz").write_bytes(b"no zlib")
    with pytest.raises(DlcError, match=r"nt\.bzz does not hold SWORD's compressed text"):
        texts.read_bible(tmp_path)


def test_documents_are_paragraphs_of_prose(tmp_path: Path) -> None:
    (tmp_path / "process").mkdir()
    text = "Title\n=====\n\nTwo lines\nof prose.\n\nOne line\n\n- a list\n- of two\n\n   code\n   here\n\nAnd\nmore\n"
    for name in ("howto", "a"):
        (tmp_path / "process" / f"{name}.rst.gz").write_bytes(gzip.compress(text.encode()))
    assert texts.read_linux(tmp_path).split() == ["Two", "lines", "of", "prose.", "And", "more"] * 2


def test_words_are_lower_case_and_numbers_one() -> None:
    found = data.tokens("The “King\u2019s” 12 men — don't_stop: 3.14!")
    assert found == ["the", '"', "king's", '"', "0", "men", "don't", "stop", ":", "0", ".", "0", "!"]


def test_parts_are_disjoint_and_complete(corpus: data.Corpus) -> None:
    places = [data._places(part, 42_000) for part in ("train", "validation", "test")]
    assert sorted(np.concatenate(places).tolist()) == list(range(data.CONTEXT, 42_000))
    assert [len(p) for p in places] == [36_000, 3_000, 3_000 - data.CONTEXT]
    rows = corpus.rows("test", "austen")
    assert rows.shape == (len(places[2]), data.CONTEXT + 1)
    np.testing.assert_array_equal(rows[0], 100 + np.arange(9))


def test_vocabulary_is_of_the_training_part() -> None:
    words = ["test"] * data.BLOCK + ["valid"] * data.BLOCK + ["b", "a", "a", "b", "c"]
    assert data.vocabulary({"x": words}) == (data.UNKNOWN, "a", "b", "c")
    assert data.number(["c", "test", "a"], ("<unk>", "a", "b", "c")).tolist() == [3, 0, 1]


@pytest.mark.skipif(texts_missing(), reason="texts missing: dlc zoo fetch moe")
@pytest.mark.slow
def test_excerpts_are_chosen_from_the_texts() -> None:
    corpus = data.load_corpus()
    for name in ("test", "calibration"):
        chosen = data.choose_excerpt(corpus, name)
        rows, kinds = data.load_excerpt(name)
        # Linux's documents change with security updates of their package.
        same = kinds != data.KINDS.index("linux")
        np.testing.assert_array_equal(chosen["ngram"][same], rows[same])


# --- the layer


@pytest.mark.parametrize("chosen", [2, 3])
def test_experts_are_the_weighted_results_of_the_chosen(chosen: int) -> None:
    torch.manual_seed(0)
    layer = Experts(Shape(experts=5, chosen=chosen, hidden=3, width=2, features=4))
    with torch.no_grad():
        layer.b1.normal_()
        layer.b2.normal_()
        x = torch.randn(20, 16)
        actual, balance = layer(x)
        probabilities = torch.softmax(x @ layer.router, -1)
        expected, counts = torch.zeros(20, 4), torch.zeros(5)
        for row in range(20):
            best = probabilities[row].argsort(descending=True)[:chosen]
            total = probabilities[row, best].sum()
            for expert in best.tolist():
                hidden = torch.relu(x[row] @ layer.w1[expert] + layer.b1[expert, 0])
                expected[row] += probabilities[row, expert] / total * (hidden @ layer.w2[expert] + layer.b2[expert, 0])
                counts[expert] += 1
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(balance, 5 * (counts / counts.sum() * probabilities.mean(0)).sum())


def test_the_dense_layer_takes_as_many_operations() -> None:
    ours, theirs = Shape(), Shape().dense()
    assert train.shape_of("dense") == theirs
    assert 0 <= theirs.multiply_adds() - ours.multiply_adds() < theirs.window + theirs.features


# --- training


@pytest.fixture
def small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trainings of small networks, short but no trials; returns the cache."""
    monkeypatch.setenv("DLC_CACHE", str(tmp_path))
    monkeypatch.setitem(train._SHAPES, "top-2", Shape(experts=4, hidden=8, width=4, features=8))
    whole = train.configure

    def short(options: TrainOptions) -> train.TrainConfig:
        return replace(whole(options), epochs=2, steps=50, batch=128, held_out=50, peak_rate=0.03)

    monkeypatch.setattr(train, "configure", short)
    return tmp_path


def test_training_learns_and_is_measured(corpus: data.Corpus, small_run: Path) -> None:
    train.train_on(corpus, TrainOptions("top-2"), small_run / "w.safetensors", lambda line: None)
    ((name, found),) = measured.read(small_run / "moe" / "trained" / "top-2-0.npz").items()
    assert name == "top-2-0" and found.notes["multiply_adds"] == train.shape_of("top-2").multiply_adds()
    assert found.arrays["nats"].shape == (4, 2) and found.arrays["load"].sum() == 4 * 2 * 2_000
    network = train.load_weights(small_run / "w.safetensors")
    again = train.measure(network, corpus)
    np.testing.assert_allclose(again["nats"], found.arrays["nats"], rtol=1e-5)
    assert np.exp(-found.arrays["nats"].sum() / 8_000) < 1_000  # of 8,000 words; a beginner's is 8,000


def test_weights_of_another_family_are_refused(tmp_path: Path) -> None:
    from dlc.zoo import training

    config = training.Config()
    training.save_weights(torch.nn.Linear(1, 1), config, training.History([1.0], [1.0]), tmp_path / "w")
    with pytest.raises(DlcError, match="does not hold weights of this family"):
        train.load_weights(tmp_path / "w")


# --- ONNX and packages


@pytest.mark.parametrize("size", train.SIZES)
def test_export_is_true_to_torch_and_compiles(size: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = replace(train.shape_of(size), width=8, features=16, hidden=8)
    network = LanguageModel(shape, 300).eval()
    assert export.export_model(network, tmp_path / "m.onnx") <= 1e-4
    rows = np.random.default_rng(0).integers(0, 300, (50, data.CONTEXT + 1))
    package = dlc.compile(str(tmp_path / "m.onnx"))
    with torch.no_grad():
        expected = network(torch.from_numpy(rows)).numpy() * np.log10(np.e)
    np.testing.assert_allclose(dlc.load(package).run({"ngram": rows})["log10"], expected, atol=1e-4)
    explanation = explain.read(package)
    grouped = [row for row in explanation.nodes if row["kernel"].startswith("grouped")]
    assert len(grouped) == (0 if size == "dense" else 2) and not explanation.declined


def test_export_is_deterministic() -> None:
    torch.manual_seed(0)
    network = LanguageModel(replace(Shape(), width=4, features=8, hidden=4), 50).eval()
    first, second = (export.build(network).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


# --- the committed model and its card


def test_committed_model_reaches_its_embedded_figure() -> None:
    pytest.importorskip("onnxruntime")
    score = evaluate.evaluate(OnnxModel(models.model_path("moe")), False, None)
    assert score.value == pytest.approx(models.read_card("moe")["embedded_value"], rel=1e-3)
    assert set(score.details["kinds"]) == set(data.KINDS)


def test_eval_measures_a_compiled_package(tmp_path: Path) -> None:
    dlc.compile("zoo:moe").save(tmp_path / "m.dlc")
    record = json.loads(invoke("eval", "moe", "--package", str(tmp_path / "m.dlc"), "--json").output)
    assert record["count"] == 16_000
    assert record["value"] == pytest.approx(models.read_card("moe")["embedded_value"], rel=1e-3)


def test_the_routers_choice_is_the_models() -> None:
    rows = data.load_excerpt("test")[0][::40]
    chosen = evaluate.chosen(models.model_path("moe"), rows)
    share = np.bincount(chosen.ravel(), minlength=8) / chosen.size
    np.testing.assert_allclose(share, models.read_card("moe")["load"], atol=0.06)


def test_experts_that_are_not_chosen_are_not_read() -> None:
    path, row = models.model_path("moe"), data.load_excerpt("test")[0][777]
    expected, actual = (
        dlc.load(dlc.compile(model)).run({"ngram": row[None]})["log10"]
        for model in (str(path), evaluate.without_others(path, row))
    )
    assert np.isfinite(actual).all()
    np.testing.assert_array_equal(actual, expected)


def training_of(nats: float, seed: int) -> Measured:
    rng = np.random.default_rng(seed)
    return Measured({}, {"nats": data.BLOCK * (nats + 0.01 * rng.standard_normal((4, 20)))})


@pytest.mark.parametrize(
    ("gains", "met"), [((0.1, 0.1, 0.1), True), ((0.1, 0.1), False), ((0.3, 0.3, -0.1), False), ((0, 0, 0), False)]
)
def test_the_comparison_asks_for_every_seed(gains: tuple[float, ...], met: bool) -> None:
    trainings = {f"dense-{s}": training_of(-5, s) for s in range(3)}
    trainings |= {f"top-2-{s}": training_of(-5 + gain, 9 + s) for s, gain in enumerate(gains)}
    found = evaluate._Findings(trainings, 0, 0, {}, 0, np.zeros((4, 8), np.int64), {}, (), 0, 0)
    assert evaluate._comparison(found)[0] is met


def test_information_is_all_where_experts_are_kinds() -> None:
    assert evaluate._information(np.eye(4, dtype=np.int64)) == (2, 2)
    assert evaluate._information(np.ones((4, 16), np.int64)) == (0, 2)


def test_picture_shows_every_share() -> None:
    load = np.array([[8, 1, 1], [1, 8, 1]])
    root = ElementTree.fromstring(picture.draw(load, ("first", "<second>")))
    found = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert found[:4] == ["expert", "0", "2", "1"]
    assert found[4:8] == ["first", "80.0%", "10.0%", "10.0%"] and "<second>" in found and found[-1] == "45.0%"


# --- what was measured


def test_measurements_are_read_as_they_were_written(tmp_path: Path) -> None:
    given = {"a-1": Measured({"seed": 1, "x": [1, None]}, {"n": np.arange(3)}), "b": Measured({}, {})}
    measured.write(tmp_path / "t.npz", given)
    found = measured.read(tmp_path / "t.npz")
    assert found["a-1"].notes == given["a-1"].notes and found["b"].arrays == {}
    np.testing.assert_array_equal(found["a-1"].arrays["n"], np.arange(3))
    first = (tmp_path / "t.npz").read_bytes()
    measured.write(tmp_path / "t.npz", dict(reversed(given.items())))
    assert (tmp_path / "t.npz").read_bytes() == first
    assert measured.read(tmp_path / "none.npz") == {}


def test_other_files_are_no_measurements(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.arange(3))
    (tmp_path / "y.npz").write_bytes(b"no zip")
    for name in ("x.npz", "y.npz"):
        with pytest.raises(DlcError, match="does not hold what was measured of trainings"):
            measured.read(tmp_path / name)
