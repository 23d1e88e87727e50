"""The translation family: pairs and subwords, the beam search as one graph, scores, the committed models, the card."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import dlc
from dlc import zoo as models
from dlc.cli.zoo import zoo
from dlc.errors import DlcError
from dlc.explain import read
from dlc.zoo import cards, exporting
from dlc.zoo.family import SampleOptions
from dlc.zoo.models import Model
from dlc.zoo.nmt import data, graphs, picture, sample
from dlc.zoo.nmt.data import Pair

VOCABULARY, EMBEDDING, ENCODER, DECODER, ATTENTION = 20, 6, 5, 8, 7


def small_weights(attends: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a small network, by their names from training."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (VOCABULARY, EMBEDDING), "bias": (VOCABULARY,)}
    for direction in ("", "_reverse"):
        shapes |= {f"encoder.{kind}_ih_l0{direction}": (3 * ENCODER, EMBEDDING)[: 1 + (kind == "weight")]
                   for kind in ("weight", "bias")}  # fmt: skip
        shapes |= {f"encoder.{kind}_hh_l0{direction}": (3 * ENCODER, ENCODER)[: 1 + (kind == "weight")]
                   for kind in ("weight", "bias")}  # fmt: skip
    dense = {"start": (DECODER, 2 * ENCODER), "readout": (EMBEDDING, DECODER + 2 * ENCODER + EMBEDDING)}
    if attends:
        dense["keys"] = (ATTENTION, 2 * ENCODER)
        shapes |= {"query.weight": (ATTENTION, DECODER), "energy.weight": (1, ATTENTION)}
    for name, shape in dense.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for kind, inputs in (("ih", EMBEDDING + 2 * ENCODER), ("hh", DECODER)):
        shapes |= {f"cell.weight_{kind}": (3 * DECODER, inputs), f"cell.bias_{kind}": (3 * DECODER,)}
    gain, end = (1.0, 1.0) if attends else (0.7, 3.0)  # such that translations end soon, late and never
    weights = {name: (gain * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    weights["bias"] /= gain
    weights["bias"][data.EOS] += end
    return weights


class Reference:
    """The network in numpy, and a beam search over lists of hypotheses."""

    def __init__(self, weights: Mapping[str, np.ndarray], source: np.ndarray) -> None:
        self.w = {name: array.astype(np.float64) for name, array in weights.items()}
        self.attends = "keys.weight" in weights
        embedded = self.w["embedding.weight"][source]
        forward, backward = self._read(embedded, ""), self._read(embedded[::-1], "_reverse")[::-1]
        self.annotations = np.concatenate([forward, backward], 1)
        self.summary = np.concatenate([forward[-1], backward[0]])
        self.first = np.tanh(self.w["start.weight"] @ self.summary + self.w["start.bias"])

    def _gru(self, x: np.ndarray, h: np.ndarray, names: list[str]) -> np.ndarray:
        wi, wh, bi, bh = (self.w[name] for name in names)
        (ri, zi, ni), (rh, zh, nh) = np.split(wi @ x + bi, 3), np.split(wh @ h + bh, 3)
        r, z = (1 / (1 + np.exp(-value)) for value in (ri + rh, zi + zh))
        return np.asarray((1 - z) * np.tanh(ni + r * nh) + z * h)

    def _read(self, embedded: np.ndarray, direction: str) -> np.ndarray:
        names = [f"encoder.{kind}_l0{direction}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        states = [np.zeros(ENCODER)]
        for x in embedded:
            states.append(self._gru(x, states[-1], names))
        return np.stack(states[1:])

    def step(self, token: int, state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Log probabilities of the next piece, the next state, and the shares of attention."""
        context, look = self.summary, None
        if self.attends:
            keys = self.annotations @ self.w["keys.weight"].T + self.w["keys.bias"]
            energy = np.tanh(keys + self.w["query.weight"] @ state) @ self.w["energy.weight"][0]
            look = np.exp(energy - energy.max())
            look /= look.sum()
            context = look @ self.annotations
        x = self.w["embedding.weight"][token]
        names = ["cell.weight_ih", "cell.weight_hh", "cell.bias_ih", "cell.bias_hh"]
        state = self._gru(np.concatenate([x, context]), state, names)
        features = np.concatenate([state, context, x])
        hidden = np.tanh(self.w["readout.weight"] @ features + self.w["readout.bias"])
        logits = self.w["embedding.weight"] @ hidden + self.w["bias"]
        return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max(), state, look

    def search(self, beam: int, limit: int) -> tuple[list[int], float, np.ndarray]:
        """The best hypothesis's pieces, its score and its alignment."""
        hypotheses: list[Any] = [(0.0, [], self.first, [])]  # log probability, pieces, state, looks

        def rank(hypothesis: Any) -> float:
            return float(hypothesis[0] / ((5 + len(hypothesis[1])) / 6) ** graphs.ALPHA)

        for _ in range(limit):
            grown = []
            for hypothesis in hypotheses:
                total, pieces, state, looks = hypothesis
                if pieces and pieces[-1] == data.EOS:
                    grown.append(hypothesis)
                    continue
                log, after, look = self.step(pieces[-1] if pieces else data.BOS, state)
                grown += [(total + log[p], [*pieces, p], after, [*looks, look]) for p in range(VOCABULARY)]
            hypotheses = sorted(grown, key=rank, reverse=True)[:beam]
            if all(pieces[-1] == data.EOS for _, pieces, *_ in hypotheses):
                break
        best = max(hypotheses, key=rank)
        return best[1], rank(best), np.array(best[3])


def run_onnx(proto: onnx.ModelProto, source: np.ndarray) -> dict[str, np.ndarray]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {data.INPUT: source[None]}), strict=True))


def sources(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.append(rng.integers(4, VOCABULARY, rng.integers(1, 12)), data.EOS) for _ in range(count)]


# --- the graph


@pytest.mark.parametrize("attends", [True, False])
@pytest.mark.parametrize("beam", [1, 4])
def test_graph_finds_what_a_search_over_lists_finds(attends: bool, beam: int) -> None:
    weights, lengths = small_weights(attends), set()
    proto = graphs.translator(graphs.from_training(weights), beam)
    session = dlc.load(dlc.compile(proto), threads=1)
    for source in sources(12):
        pieces, score, looks = Reference(weights, source).search(beam, data.LIMIT)
        lengths.add(len(pieces))
        for found in (run_onnx(proto, source), session.run({data.INPUT: source[None]})):
            assert found[graphs.TOKENS][0].tolist() == pieces + [data.EOS] * (data.LIMIT - len(pieces))
            np.testing.assert_allclose(found[graphs.SCORE], [score], rtol=1e-4)
            assert (graphs.ALIGNMENT in found) == attends
            if attends:
                np.testing.assert_allclose(found[graphs.ALIGNMENT][0, : len(pieces)], looks, atol=1e-4)
    assert len(lengths) >= 4  # else the cases say nothing about ends


def test_the_whole_search_is_native() -> None:
    package = dlc.compile(graphs.translator(graphs.from_training(small_weights()), 4))
    rows = read(package).nodes
    loops = [row["op"] for row in rows if row["kernel"].startswith("native loop")]
    assert sorted(loops) == ["GRU", "GRU", "Loop", "Scan"]
    assert not [row for row in rows if "host" in row["kernel"]]
    updates = [row["kernel"] for row in rows if row["kernel"].startswith("scatter_rows")]
    assert len(updates) == 3 and all(kernel.endswith("in place") for kernel in updates)


def test_another_width_is_made_from_a_file(tmp_path: Path) -> None:
    weights = graphs.from_training(small_weights())
    onnx.save(graphs.translator(weights, 4), tmp_path / "m.onnx")
    again = graphs.translator(graphs.read_translator(tmp_path / "m.onnx"), 2)
    assert again.SerializeToString(deterministic=True) == graphs.translator(weights, 2).SerializeToString(
        deterministic=True
    )


def test_another_model_is_no_translator() -> None:
    with pytest.raises(DlcError, match="it is no translator of this family"):
        graphs.read_translator(models.model_path("vision"))


# --- pairs


PAGE = """<html><body><p class="paragraph">no id</p>
<h1 id="head" dir="auto">Saving  <em>files</em></h1>
<p id="keys">Press <span id="s" class="switchinline"><span hidden="true" id="m" class="MAC"><span class="k">Command
</span></span><span hidden="true" id="d"><span class="k">Ctrl</span></span></span>+S<br>now&nbsp;&amp; here.</p>
<p id="code" class="code">Print 1</p><p id="head">a second one</p><p id="quote">l\u2019icône</p></body></html>"""


def test_page_is_read_by_ids() -> None:
    assert data.read_page(PAGE) == {
        "head": "Saving files", "keys": "Press Ctrl+S now & here.", "quote": "l'icône",
    }  # fmt: skip


def write_help(folder: Path, english: Mapping[str, str], french: Mapping[str, str]) -> None:
    """Packages with one page, and the empty pages that are expected in them."""
    for package, texts in zip(data.PACKAGES, (english, french), strict=True):
        for name in package.files:
            path = folder / package.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
        lines = [f'<p id="{key}">{text}</p>' for key, text in texts.items()]
        (folder / package.name / "page.html").write_text("\n".join(lines), encoding="utf-8")


def test_pairs_are_what_both_languages_have(tmp_path: Path) -> None:
    long = " ".join(["word"] * 30)
    english = {
        "a": "Open a file.",
        "b": "Only here.",
        "c": "Same",
        "d": "Open a file.",
        "e": f"One {long}. Two {long}.",
    }
    french = {"a": "Ouvrir.", "c": "Same", "d": "Autre chose", "e": f"Un {long}. Deux {long}.", "f": "Seul"}
    write_help(tmp_path, english, french)
    pairs = [pair for part in data.load_pairs(tmp_path).values() for pair in part]
    expected = {
        Pair("Open a file.", "Ouvrir."),
        Pair(f"One {long}.", f"Un {long}."),
        Pair(f"Two {long}.", f"Deux {long}."),
    }
    assert set(pairs) == expected and len(pairs) == 3


@pytest.mark.parametrize(
    ("english", "french", "expected"),
    [
        ("A file", "Un fichier", True),
        ("A file", "A file", False),
        ("A file", "", False),
        ("A", "Un fichier", False),
        ("word " * 40, "mot " * 40, True),
        ("word " * 40, "mot " * 41, False),
    ],
)
def test_what_is_no_pair_is_left_out(english: str, french: str, expected: bool) -> None:
    assert data.usable(Pair(english.strip(), french.strip())) is expected


def test_texts_that_differ_in_marks_alone_lie_in_one_part() -> None:
    texts = [f"Text {chr(97 + i)}{chr(97 + j)}" for i in range(26) for j in range(26)]
    parts = [data.part_of(text) for text in texts]
    assert [data.part_of(f"{text.upper()}: 7!") for text in texts] == parts
    shares = {part: parts.count(part) / len(parts) for part in ("train", "validation", "test")}
    assert 0.04 < shares["test"] < 0.13 and 0.01 < shares["validation"] < 0.08


def test_missing_packages_are_named(tmp_path: Path) -> None:
    with pytest.raises(DlcError, match="the debian package libreoffice-help-en-us is not in"):
        data.load_pairs(tmp_path / "nothing")


# --- subwords and excerpts


def test_text_survives_its_pieces() -> None:
    pytest.importorskip("sentencepiece")
    for pair in data.load_excerpt()[:50]:
        tokens = data.encode(pair.french)
        assert tokens[-1] == data.EOS and tokens.max() < data.VOCABULARY
        if 3 not in tokens:  # an unknown character
            assert data.decode(np.append(tokens, [data.EOS] * 3)) == pair.french
    assert data.pieces(data.encode("La table"))[-1] == "</s>"
    assert data.length_of(np.array([5, 6, data.EOS, data.EOS])) == 3 and data.length_of(np.array([5, 6])) == 2


def test_pieces_are_made_from_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    monkeypatch.setattr(data, "VOCABULARY", 40)
    content = data.make_pieces(["the table and the tables", "la table et les tables"] * 20)
    made = sentencepiece.SentencePieceProcessor(model_proto=content)
    assert made.vocab_size() == 40
    assert (made.pad_id(), made.bos_id(), made.eos_id()) == (data.PAD, data.BOS, data.EOS)
    assert "▁table" in made.encode("table", out_type=str)


def test_excerpts_are_test_and_training_texts() -> None:
    assert all(data.part_of(pair.english) == "test" and data.usable(pair) for pair in data.load_excerpt())
    assert len({pair.english for pair in data.load_excerpt()}) == 400
    pytest.importorskip("sentencepiece")
    for name, part in (("calibration", "train"), ("test", "test")):
        for source in data.samples(name)[data.INPUT]:  # type: ignore[arg-type]
            assert source[-1] == data.EOS and data.part_of(data.decode(source)) == part


def test_excerpts_have_not_moved() -> None:
    texts = "\n".join(f"{pair.english}\t{pair.french}" for pair in data.load_excerpt()).encode()
    rows = [data.samples(name)[data.INPUT].tobytes() for name in ("calibration", "test")]  # type: ignore[arg-type]
    assert [hashlib.sha256(content).hexdigest()[:16] for content in (texts, *rows)] == DIGESTS


def test_excerpt_is_chosen_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentencepiece")
    letters = [chr(97 + i) + chr(97 + j) + chr(97 + k) for i in range(8) for j in range(8) for k in range(4)]
    english = {name: f"{name} tables and pages and more and" for name in letters}
    write_help(tmp_path, english, {name: f"{text} x" for name, text in english.items()})
    test = data.load_pairs(tmp_path)["test"]
    monkeypatch.setattr(data, "_PIECES", len(data.encode(test[0].english)))
    for _ in range(2):
        found = data.choose_excerpt("test", tmp_path)
        assert data.decode(found[data.INPUT][0]) in {pair.english for pair in test}
        assert len(found["english"]) == len(found["french"]) == len(test)
        assert all(str(f) == f"{e} x" for e, f in zip(found["english"], found["french"], strict=True))


# --- scores and translations


def test_scores_are_sacrebleus_and_gains_are_paired() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    from dlc.zoo.nmt import scores

    references = [pair.french for pair in data.load_excerpt()[:60]]
    worse = [" ".join([*text.split()[:-1], "faux"]) for text in references]
    worst = [" ".join(text.split()[::-1]) for text in references]
    bleu, chrf = (scores.count(metric, worse, references) for metric in scores.METRICS)
    assert bleu.score == pytest.approx(sacrebleu.corpus_bleu(worse, [references]).score)
    assert chrf.score == pytest.approx(sacrebleu.corpus_chrf(worse, [references]).score)
    gain = bleu.gain(scores.count("BLEU", worst, references))
    assert 0 < gain.low < gain.value < gain.high
    assert gain.value == pytest.approx(bleu.score - sacrebleu.corpus_bleu(worst, [references]).score)
    few = np.arange(60) < 20
    assert bleu.interval(few).value == pytest.approx(sacrebleu.corpus_bleu(worse[:20], [references[:20]]).score)
    assert bleu.gain(bleu).low == bleu.gain(bleu).high == 0


class FakeModel:
    """Translates everything as one text."""

    def __init__(self, text: str, attends: bool = True, name: str = data.INPUT) -> None:
        self.path = Path("fake.onnx")
        self.inputs: Mapping[str, tuple[int | str, ...]] = {name: (1, "S")}
        self._tokens, self._attends = data.encode(text), attends

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tokens = np.full((1, data.LIMIT), data.EOS)
        tokens[0, : len(self._tokens)] = self._tokens
        shares = np.zeros((1, data.LIMIT, feed[data.INPUT].shape[1]), np.float32)
        shares[..., 0] = 1
        return {graphs.TOKENS: tokens} | ({graphs.ALIGNMENT: shares} if self._attends else {})


def test_evaluation_scores_the_translations(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("sentencepiece")
    from dlc.zoo.nmt import evaluate

    pairs = [Pair("The first table is here.", "La première table est ici."), Pair("No.", "Non.")]
    monkeypatch.setattr(data, "load_excerpt", lambda: pairs[:1])
    monkeypatch.setattr(data, "load_pairs", lambda directory: {"test": pairs})
    model: Model = FakeModel("La première table est ici.")
    score = evaluate.evaluate(model, False, None)
    assert score.value == pytest.approx(100) and score.details["chrF"] == pytest.approx(100)
    full = evaluate.evaluate(model, True, None)
    assert full.value < 90 and full.details["count"] == 2


def test_sample_translates_a_prompt_and_draws_what_was_looked_at(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    model = FakeModel("La table.")
    lines = list(sample.sample(model, SampleOptions(prompt="The table.", out=tmp_path / "a.svg")))
    assert lines == ["The table. -> La table.", f"wrote {tmp_path / 'a.svg'}"]
    assert "▁table" in (tmp_path / "a.svg").read_text()
    lines = list(sample.sample(model, SampleOptions(count=3, seed=1)))
    assert len(lines) == 3 and all("-> La table. (reference: " in line for line in lines)
    assert lines == list(sample.sample(model, SampleOptions(count=3, seed=1)))
    assert lines != list(sample.sample(model, SampleOptions(count=3, seed=2)))


@pytest.mark.parametrize(
    ("model", "options", "text"),
    [
        ({}, SampleOptions(prompt="  "), "the text is empty"),
        ({"attends": False}, SampleOptions(prompt="A", out=Path("a.svg")), "has no attention, so there is nothing"),
        ({"name": "image"}, SampleOptions(prompt="A"), "has the inputs image, not source: it is no translator"),
    ],
)
def test_sample_says_what_is_wrong(model: dict[str, Any], options: SampleOptions, text: str) -> None:
    pytest.importorskip("sentencepiece")
    with pytest.raises(DlcError, match=text):
        list(sample.sample(FakeModel("A", **model), options))


def test_picture_has_a_square_for_each_share() -> None:
    drawn = picture.draw(["a", "<b>", "</s>"], ["x", "</s>"], np.array([[1, 0, 0], [0, 0.5, 0.5]]))
    assert drawn.count('stroke="#ddd"') == 6 and "&lt;b&gt;" in drawn
    assert drawn.count('fill="rgb(20,50,120)"') == 1 and drawn.count('fill="rgb(255,255,255)"') == 3


# --- the committed models and the card


@pytest.mark.parametrize("name", ["nmt", "plain"])
def test_committed_models_translate_and_carry_their_notes(name: str) -> None:
    path = models.model_path("nmt").with_name(f"{name}.onnx")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    outputs = [value.name for value in model.graph.output]
    assert outputs == [graphs.TOKENS, graphs.SCORE] + ([graphs.ALIGNMENT] if name == "nmt" else [])
    assert exporting.read_notes(path, "nmt")["size"] == {"nmt": "attention"}.get(name, name)


def test_committed_models_are_small_together() -> None:
    folder = models.model_path("nmt").parent
    assert sum(path.stat().st_size for path in folder.glob("*.onnx")) <= 10_000_000


def test_committed_model_reaches_its_embedded_figure() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("sacrebleu")
    pytest.importorskip("sentencepiece")
    score = CliRunner().invoke(zoo, ["eval", "nmt", "--json"])
    value = json.loads(score.output)["value"]
    assert abs(value - models.read_card("nmt")["embedded_value"]) <= 0.05  # ties may fall otherwise elsewhere


def test_card_has_the_figures_of_all_systems() -> None:
    card = models.read_card("nmt")
    assert set(card["bleu"]) == {"attention", "greedy", "plain", "onnx", "none", "int8"} == set(card["chrf"])
    assert card["value"] == card["bleu"]["attention"] > card["bleu"]["plain"]
    assert models.model_path("nmt").with_name("alignment.svg").read_text().startswith("<svg")


def test_card_is_written_from_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sacrebleu")
    from dlc.zoo.nmt import evaluate

    monkeypatch.setattr(cards, "model_path", lambda name: tmp_path / "nmt.onnx")
    (tmp_path / "nmt.onnx").write_bytes(models.model_path("nmt").read_bytes())
    base = data.load_excerpt()[:60]
    pairs = [Pair(f"{'word ' * length}", pair.french) for pair, length in zip(base, [3, 12, 25, 35] * 15, strict=True)]
    right = [pair.french for pair in pairs]
    wrong = [f"{pair.french[:-9]} faux" if len(pair.english.split()) < 20 else pair.french for pair in pairs]
    found = evaluate._Findings(pairs, pairs)
    found.systems = {"attention": right, "greedy": right, "plain": wrong}
    found.excerpt = {"onnx": right, "none": right, "int8": wrong}
    head = cards.read_head(cards.write_card(evaluate._card(found, "*a* becomes *b*", 1234)))
    assert [claim["met"] for claim in head["claims"]] == [True, False, False, False, True, False]
    text = (tmp_path / "card.md").read_text()
    assert "all 1,234 pairs" in text and "| 1 to 9 | 15 |" in text and "*a* becomes *b*" in text


def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from dlc.zoo.nmt import scores

    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(DlcError, match=r"BLEU and chrF need sacrebleu: pip install 'dlc\[zoo\]'"):
        scores.count("BLEU", ["a"], ["b"])
    data.subwords.cache_clear()
    with pytest.raises(DlcError, match=r"subwords need sentencepiece: pip install 'dlc\[zoo\]'"):
        data.encode("a")


DIGESTS = ["2d20306041a256de", "8db25fbbbdc62ca4", "b0c50a3df8d38428"]
