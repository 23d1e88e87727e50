"""Word and character errors, and the card: beside the HMMs, with a language model, in int8, and of students."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dlc import zoo
from dlc.cache import cache_dir
from dlc.errors import DlcError
from dlc.zoo import cards
from dlc.zoo.asr import data, prompts
from dlc.zoo.asr.card_text import SECTIONS
from dlc.zoo.asr.decoding import Beam, CharacterModel, greedy
from dlc.zoo.asr.inference import logits_of
from dlc.zoo.exporting import read_notes
from dlc.zoo.family import Report, Score
from dlc.zoo.models import Model, OnnxModel, PackageModel
from dlc.zoo.statistics import Interval, bootstrap, paired_bootstrap, ratio

#: (utterances, 2): errors, and the words or characters of the reference.
Rows = NDArray[np.float64]
#: The systems that recognise the same utterances.
_SYSTEMS = {
    "hmm": "HMM-GMM, word bigram",
    "greedy": "LSTM-CTC, best path",
    "beam": "LSTM-CTC, beam search with character 8-grams",
    "student": "distilled student, best path",
}
#: What they are asked to recognise.
_SETS = {"test": "test part", "isolated": "real prompts, one by one", "joined": "real prompts, joined to sentences"}
_LIMIT = 0.01  # what int8 may lose, relative
_NOISY = 15.0  # dB, below which an utterance counts as noisy


def evaluate(model: Model, full: bool, directory: Path | None) -> Score:
    """Measure the word error rate of the best path on the test part, or on its embedded beginning."""
    test = data.load_part("test", directory) if full else data.load_excerpt("test")
    start = time.perf_counter()
    heard = recognise(model, test.frames)
    seconds = time.perf_counter() - start
    words, characters = word_errors(test.texts, heard), character_errors(test.texts, heard)
    value, cer = ratio(words), ratio(characters)
    text = f"{value:.2%} of words wrong, {cer:.2%} of characters ({len(test)} utterances, {seconds:.1f} s)"
    details = {"utterances": len(test), "cer": cer, "seconds": seconds}
    return Score("word error rate", value, text, details)


def recognise(model: Model, utterances: Sequence[Any], decode: Callable[[Any], str] = greedy) -> list[str]:
    """What a model hears in each of some utterances' frames."""
    return [decode(logits) for logits in logits_of(model, utterances)]


def word_errors(texts: Sequence[str], heard: Sequence[str]) -> Rows:
    """The least substitutions, deletions and insertions of words for each utterance, and its words; by jiwer."""
    jiwer = _jiwer()
    return _rows(texts, heard, lambda a, b: jiwer.process_words(a, b), lambda text: len(text.split()))


def character_errors(texts: Sequence[str], heard: Sequence[str]) -> Rows:
    """The same of characters, blanks included."""
    jiwer = _jiwer()
    return _rows(texts, heard, lambda a, b: jiwer.process_characters(a, b), len)


def _rows(
    texts: Sequence[str], heard: Sequence[str], process: Callable[[str, str], Any], size: Callable[[str], int]
) -> Rows:
    found = (process(a, b) for a, b in zip(texts, heard, strict=True))
    errors = [one.substitutions + one.deletions + one.insertions for one in found]
    return np.column_stack([errors, [size(text) for text in texts]]).astype(np.float64)


def _jiwer() -> Any:
    try:
        import jiwer
    except ImportError:
        raise DlcError("counting errors needs jiwer: pip install 'dlc[zoo]'") from None
    return jiwer


# --- the card


@dataclass
class _Findings:
    """What the card reports.

    Attributes:
        words, characters: by set and system; the systems heard the same utterances.
        heard: by system, what it heard in the test part.
        test: the test part.
        packages: by quantisation, the words of the best path on the test part.
        students: by kind (``student``, ``student-distilled``) and seed, the characters of the best path on the test
            part.
        hmm_seconds: processor time of the baseline's training.
    """

    words: dict[str, dict[str, Rows]]
    characters: dict[str, dict[str, Rows]]
    heard: dict[str, list[str]]
    test: data.Utterances
    packages: dict[str, Rows]
    students: dict[str, dict[int, Rows]]
    hmm_seconds: float


def write_card(weights: Path | None, directory: Path | None, report: Report) -> Path:
    """Train the baseline, measure every figure, write ``card.md`` and return its path.

    The notes on the training come from the committed ONNX file, so `weights` is not needed. Students are compared as
    far as the cache keeps their trainings.

    Raises:
        DlcError: what speaks, recordings or a library are missing, or the cache keeps no pair of students.
    """
    train = data.load_part("train", directory)
    start = time.process_time()
    hmm = _train_baseline(train, report)
    hmm_seconds = time.process_time() - start
    sets = {
        "test": data.load_part("test", directory),
        "isolated": prompts.isolated(directory),
        "joined": prompts.joined(directory),
    }
    heard = {name: _hear_all(part, hmm, report) for name, part in sets.items()}
    report("students of all seeds")
    students = _measure_students(sets["test"])
    report("compiling in float32 and in int8")
    packages = {
        mode: word_errors(sets["test"].texts, recognise(_compiled(mode), sets["test"].frames))
        for mode in ("none", "int8")
    }
    found = _Findings(
        {name: {s: word_errors(sets[name].texts, h) for s, h in by.items()} for name, by in heard.items()},
        {name: {s: character_errors(sets[name].texts, h) for s, h in by.items()} for name, by in heard.items()},
        heard["test"], sets["test"], packages, students, hmm_seconds,
    )  # fmt: skip
    embedded = evaluate(OnnxModel(zoo.model_path("asr")), False, None)
    return cards.write_card(_card(found, embedded.value, train))


def student_path() -> Path:
    """The committed student."""
    return zoo.model_path("asr").with_name("student.onnx")


def _train_baseline(train: data.Utterances, report: Report) -> Any:
    try:
        from dlc.zoo.asr import hmm
    except ImportError:
        raise DlcError("the baseline needs hmmlearn: pip install 'dlc[zoo]'") from None
    return hmm.train(train.frames, train.texts, lambda line: report(f"HMM-GMM, {line}"))


def _hear_all(part: data.Utterances, hmm: Any, report: Report) -> dict[str, list[str]]:
    """What every system hears in some utterances."""
    report(f"{len(part)} utterances by {len(_SYSTEMS)} systems")
    beam = Beam(CharacterModel.of(data.transcripts()))
    logits = logits_of(OnnxModel(zoo.model_path("asr")), part.frames)
    return {
        "hmm": [hmm.recognise(frames) for frames in part.frames],
        "greedy": [greedy(one) for one in logits],
        "beam": [beam.search(one) for one in logits],
        "student": recognise(OnnxModel(student_path()), part.frames),
    }


def _measure_students(test: data.Utterances) -> dict[str, dict[int, Rows]]:
    """The characters of every student that the cache keeps, if one of the other kind had the same seed."""
    from dlc.zoo.asr.export import export  # torch

    kinds = ("student", "student-distilled")
    folder = cache_dir() / "asr" / "trained"
    seeds = [s for s in range(100) if all((folder / f"{kind}-{s}.safetensors").is_file() for kind in kinds)]
    if not seeds:
        raise DlcError(f"no students in {folder}: run `dlc zoo train asr --size student` and `dlc zoo distill asr`")
    rows: dict[str, dict[int, Rows]] = {kind: {} for kind in kinds}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in kinds:
            for seed in seeds:
                path = Path(scratch) / f"{kind}-{seed}.onnx"
                export(folder / f"{kind}-{seed}.safetensors", path)
                rows[kind][seed] = character_errors(test.texts, recognise(OnnxModel(path), test.frames))
    return rows


def _compiled(quantize: Literal["none", "int8"]) -> PackageModel:
    """The committed model as a package for this machine."""
    import dlc

    calibration = "zoo:asr" if quantize == "int8" else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "asr.dlc"
        dlc.compile("zoo:asr", quantize=quantize, calibration=calibration).save(path)
        return PackageModel(path)


def _percent(interval: Interval) -> str:
    return f"{interval.value:.2%} ({interval.low:.2%} to {interval.high:.2%})"


def _claims(found: _Findings) -> list[cards.Claim]:
    test = found.words["test"]
    better = paired_bootstrap(test["hmm"], test["greedy"], ratio)
    language = paired_bootstrap(test["greedy"], test["beam"], ratio)
    direct, distilled = (_pooled(found.students[kind]) for kind in ("student", "student-distilled"))
    gain = paired_bootstrap(direct, distilled, ratio)
    loss = paired_bootstrap(found.packages["int8"], found.packages["none"], ratio)
    relative = ratio(found.packages["int8"]) / max(ratio(found.packages["none"]), 1e-9) - 1
    seeds = len(found.students["student"])
    return [
        cards.Claim(
            "Fewer word errors than HMM-GMM with a bigram, without a language model",
            better.low > 0,
            f"{ratio(test['greedy']):.2%} against {ratio(test['hmm']):.2%}; fewer by {_percent(better)}",
        ),
        cards.Claim(
            "A language model makes fewer",
            language.low > 0,
            f"{ratio(test['beam']):.2%} against {ratio(test['greedy']):.2%}; fewer by {_percent(language)}",
        ),
        cards.Claim(
            "Distillation makes fewer errors in characters than direct training",
            gain.low > 0,
            f"{ratio(distilled):.2%} against {ratio(direct):.2%}, over {seeds} seeds; fewer by {_percent(gain)}",
        ),
        cards.Claim(
            f"int8 costs at most {_LIMIT:.0%}, or what the paired bootstrap cannot tell from nothing",
            relative <= _LIMIT or loss.low <= 0,
            f"{relative:+.2%}; {ratio(found.packages['int8']):.2%} of words, more by {_percent(loss)}",
        ),
    ]


def _pooled(students: dict[int, Rows]) -> Rows:
    """The errors of all seeds for each utterance, so that the bootstrap draws utterances."""
    return np.sum(list(students.values()), 0)


def _table(found: _Findings, name: str) -> str:
    rows = [
        (title, _percent(bootstrap(found.words[name][system], ratio)),
         _percent(bootstrap(found.characters[name][system], ratio)))
        for system, title in _SYSTEMS.items()
    ]  # fmt: skip
    return cards.table(("System", "Words wrong", "Characters wrong"), rows)


def _conditions(found: _Findings) -> str:
    """The word errors on parts of the test part."""
    flite = np.array([voice.startswith("flite") for voice in found.test.voices])
    noisy = found.test.snr < _NOISY
    parts = {
        "eSpeak NG": ~flite, "Flite": flite, f"below {_NOISY:.0f} dB": noisy, f"{_NOISY:.0f} dB and more": ~noisy,
    }  # fmt: skip
    rows = [
        (title, int(chosen.sum()), *(f"{ratio(found.words['test'][s][chosen]):.2%}" for s in _SYSTEMS))
        for title, chosen in parts.items()
    ]
    return cards.table(("Utterances", "Number", *_SYSTEMS.values()), rows)


def _examples(found: _Findings, count: int = 6) -> str:
    """Test utterances that the systems hear differently."""
    differ = [k for k in range(len(found.test)) if len({found.heard[s][k] for s in ("hmm", "greedy", "beam")}) > 1]
    rows = [(found.test.texts[k], *(found.heard[s][k] for s in ("hmm", "greedy", "beam"))) for k in differ[:count]]
    return cards.table(("Said", *(_SYSTEMS[s] for s in ("hmm", "greedy", "beam"))), rows)


def _student_table(found: _Findings) -> str:
    kinds = {"student": "by itself", "student-distilled": "from the teacher too"}
    seeds = list(found.students["student"])
    rows = [
        (title, *(f"{ratio(found.students[kind][seed]):.2%}" for seed in seeds),
         _percent(bootstrap(_pooled(found.students[kind]), ratio)))
        for kind, title in kinds.items()
    ]  # fmt: skip
    return cards.table(("Student", *(f"seed {seed}" for seed in seeds), "all"), rows)


def _card(found: _Findings, embedded: float, train: data.Utterances) -> cards.Card:
    model = zoo.model_path("asr")
    notes, student_notes = read_notes(model, "asr"), read_notes(student_path(), "asr")
    rates = {name: {s: ratio(rows) for s, rows in by.items()} for name, by in found.words.items()}
    values = {
        "notes": notes, "student_notes": student_notes, "trained_on": cards.trained_on(notes),
        "student_on": cards.trained_on(student_notes), "size": model.stat().st_size / 1e6,
        "student_size": student_path().stat().st_size / 1e6, "hours": train.hours, "utterances": len(train),
        "voices": len(set(train.voices)), "test_utterances": len(found.test),
        "test_voices": len(set(found.test.voices)),
        "words": int(found.words["test"]["greedy"][:, 1].sum()), "conditions": _conditions(found),
        "examples": _examples(found), "students": _student_table(found), "hmm_seconds": found.hmm_seconds,
        "seeds": len(found.students["student"]),
        "fp32": ratio(found.packages["none"]), "int8": ratio(found.packages["int8"]),
        **{f"table_{name}": _table(found, name) for name in _SETS},
        **{f"{name}_words": int(by["greedy"][:, 1].sum()) for name, by in found.words.items()},
    }  # fmt: skip
    figures = {
        "embedded_value": embedded, "word_error_rates": rates, "int8_value": values["int8"],
        "students": {kind: {str(s): ratio(r) for s, r in by.items()} for kind, by in found.students.items()},
    }  # fmt: skip
    return cards.Card(
        "asr", "asr: speech recognition by an LSTM with CTC", "synthesised speech, 137 words",
        "word error rate, test part", rates["test"]["greedy"], f"{rates['test']['greedy']:.2%}",
        ("HMM-GMM", f"{rates['test']['hmm']:.2%}"),
        _claims(found), notes, figures,
        [(heading, text.format_map(values)) for heading, text in SECTIONS],
    )  # fmt: skip
