"""The likelihood of WaveNet, and the card: beside a linear predictor and an LSTM, in int8, and while it generates."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dlc import zoo
from dlc.errors import DlcError
from dlc.zoo import cards
from dlc.zoo.family import Report, Score
from dlc.zoo.models import Model, OnnxModel, PackageModel
from dlc.zoo.statistics import Interval, paired_bootstrap, ratio
from dlc.zoo.wavenet import data, graphs, linear, pictures, sample
from dlc.zoo.wavenet.text import SECTIONS

#: (prompts, 2): the bits and the samples of each.
Rows = NDArray[np.float64]
#: The committed models: file, and what it is called in the card.
_MODELS = {"wavenet": "WaveNet", "mel": "WaveNet on mel frames", "lstm": "LSTM"}
_PICTURED = "vm-tocallnum"  # of the test part
_RUNS = 5  # of the generation, of which the median counts
_LIMIT = 0.01  # what int8 may lose, relative


def evaluate(model: Model, full: bool, directory: Path | None) -> Score:
    """Measure the bits a sample on the test prompts, or on the embedded middles of 24 of them.

    A conditioned model is given the mel frames of what it is asked.
    """
    prompts = load_test_set(full, directory)
    start = time.perf_counter()
    rows = score_rows(model, prompts)
    seconds = time.perf_counter() - start
    value, count = ratio(rows), int(rows[:, 1].sum())
    text = f"{value:.4f} bits a sample ({count:,} samples of {len(prompts)} test prompts, {seconds:.1f} s)"
    return Score("bits a sample", value, text, {"count": count, "prompts": len(prompts), "seconds": seconds})


def load_test_set(full: bool, directory: Path | None = None) -> list[data.Codes]:
    """The codes of the test prompts, or of the embedded excerpt.

    Raises:
        DlcError: the full set is asked for and missing.
    """
    return list(data.load_part("test", directory).values() if full else data.load_excerpt("test"))


def score_rows(model: Model, prompts: Iterable[data.Codes]) -> Rows:
    """What a model says of some prompts: see `Rows`."""
    rows = []
    for codes in prompts:
        feed: dict[str, np.ndarray] = {data.INPUT: data.context(codes)[None]}
        if data.MEL_INPUT in model.inputs:
            feed[data.MEL_INPUT] = data.upsample(data.mel_frames(codes), len(codes))[None]
        logits = model.run(feed)[graphs.OUTPUT][0]
        highest = logits.max(0)
        nats = np.log(np.exp(logits - highest).sum(0)) + highest - np.take_along_axis(logits, codes[None], 0)[0]
        rows.append((float(nats.sum(dtype=np.float64)) / np.log(2), len(codes)))
    return np.array(rows, np.float64)


# --- the card


@dataclass(frozen=True)
class Speed:
    """How fast one core generates: samples a second, and how often real time that is."""

    samples: float

    @property
    def times(self) -> float:
        """The multiple of real time."""
        return self.samples / data.RATE


def write_card(weights: Path | None, directory: Path | None, report: Report) -> Path:
    """Measure every figure, write ``card.md`` and ``spectrograms.png`` and return the card's path.

    The notes on the training come from the committed ONNX files, so `weights` is not needed.

    Raises:
        DlcError: the recordings or onnxruntime are missing, or a committed file has no notes.
    """
    prompts = load_test_set(True, directory)
    report("fitting the linear predictor")
    training = list(data.load_part("train", directory).values())
    predictor = linear.fit(training)
    rows = {"linear": np.array([(predictor.bits(codes).sum(), len(codes)) for codes in prompts])}
    for name, title in _MODELS.items():
        report(f"{title} on the full test part")
        rows[name] = score_rows(OnnxModel(model_file(name)), prompts)
    report("compiling in float32 and in int8")
    embedded, packages = load_test_set(False), {}
    for quantize in ("none", "int8"):
        packages[quantize] = score_rows(_compiled(quantize), embedded)
    packages["onnx"] = score_rows(OnnxModel(model_file("wavenet")), embedded)
    report("generating")
    speeds = _generate(directory, report)
    return cards.write_card(_card(rows, packages, speeds, sum(map(len, training))))


def model_file(name: str) -> Path:
    """The committed ONNX file of a size: ``wavenet``, ``mel`` or ``lstm``."""
    return zoo.model_path("wavenet").with_name(f"{name}.onnx")


def read_notes(path: Path) -> dict[str, Any]:
    """The notes on its training that an exported file carries.

    Raises:
        DlcError: it has none.
    """
    for entry in onnx.load(path).metadata_props:
        if entry.key == "notes":
            return dict(json.loads(entry.value))
    raise DlcError(f"{path} has no notes on its training: write it by `dlc zoo export wavenet --weights`")


def _compiled(quantize: Any) -> PackageModel:
    """The committed model as a package for this machine."""
    import dlc

    calibration = "zoo:wavenet" if quantize == "int8" else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wavenet.dlc"
        dlc.compile("zoo:wavenet", quantize=quantize, calibration=calibration).save(path)
        return PackageModel(path)


def _generate(directory: Path | None, report: Report) -> dict[str, Speed]:
    """Speak one prompt without and with its mel frames, and draw it; how fast that was."""
    codes = data.load_prompt(_PICTURED, directory)
    uniform = np.random.default_rng(0).random(len(codes), np.float32)
    sounds, speeds = [data.decode(codes)], {}
    for name, mel in (("mel", data.mel_frames(codes)), ("wavenet", None)):
        session = sample.load_generator(model_file(name))
        seconds = []
        for _ in range(_RUNS):
            start = time.perf_counter()
            made = sample.generate(session, uniform, mel)
            seconds.append(time.perf_counter() - start)
        sounds.append(data.decode(made))
        speeds[name] = Speed(len(codes) / statistics.median(seconds))
        report(f"{_MODELS[name]}: {speeds[name].samples:,.0f} samples/s")
    pictures.write_spectrograms(zoo.model_path("wavenet").with_name("spectrograms.png"), sounds)
    return speeds


def _claims(
    rows: dict[str, Rows], gains: dict[str, Interval], loss: Interval, packages: dict[str, Rows], speed: Speed
) -> list[cards.Claim]:
    bits = {name: ratio(found) for name, found in rows.items()}
    relative = ratio(packages["int8"]) / ratio(packages["none"]) - 1
    said = {
        "linear": "WaveNet says more of the next sample than linear prediction",
        "lstm": "WaveNet says more than an LSTM of similar size that saw as many samples",
        "mel": "Mel frames of what is spoken say still more",
    }
    better = {"linear": "wavenet", "lstm": "wavenet", "mel": "mel"}
    found = [
        cards.Claim(
            text,
            gains[name].low > 0,
            f"{bits[better[name]]:.3f} bits a sample; fewer by {gains[name]}",
        )
        for name, text in said.items()
    ]
    return [
        *found,
        cards.Claim(
            "The generation is one native loop, faster than real time on one core",
            speed.times > 1,
            f"{speed.samples:,.0f} samples/s, {speed.times:.1f} times real time",
        ),
        cards.Claim(
            f"int8 costs at most {_LIMIT:.0%}, or what the paired bootstrap cannot tell from nothing",
            relative <= _LIMIT or loss.low <= 0,
            f"{relative:+.2%}; bits a sample more by {loss}",
        ),
    ]


def _card(rows: dict[str, Rows], packages: dict[str, Rows], speeds: dict[str, Speed], there: int) -> cards.Card:
    gains = {
        "linear": paired_bootstrap(rows["linear"], rows["wavenet"], ratio),
        "lstm": paired_bootstrap(rows["lstm"], rows["wavenet"], ratio),
        "mel": paired_bootstrap(rows["wavenet"], rows["mel"], ratio),
    }
    loss = paired_bootstrap(packages["int8"], packages["none"], ratio)
    notes = {name: read_notes(model_file(name)) for name in _MODELS}
    bits = {name: ratio(found) for name, found in rows.items()}
    sizes = {name: _parameters(model_file(name)) for name in _MODELS}
    names = {"linear": f"linear prediction of order {linear.ORDER}", **_MODELS}
    table = cards.table(
        ("Model", "Parameters", "Bits a sample", "Training, samples seen", "Seconds"),
        [
            (title, f"{sizes[name]:,}", f"{bits[name]:.3f}", f"{_seen(notes[name]):,}", f"{notes[name]['seconds']:.0f}")
            if name in notes
            else (title, "", f"{bits[name]:.3f}", "the whole training part", "")
            for name, title in names.items()
        ],
    )
    values = {
        "table": table, "prompts": len(rows["wavenet"]), "samples": int(rows["wavenet"][:, 1].sum()),
        "fp32": ratio(packages["none"]), "int8": ratio(packages["int8"]), "onnx": ratio(packages["onnx"]),
        "loss": loss, "alone": speeds["wavenet"], "mel": speeds["mel"], "pictured": _PICTURED,
        "notes": notes["wavenet"], "there": there,
        "size": zoo.model_path("wavenet").stat().st_size / 1e3, "seen": _seen(notes["wavenet"]),
    }  # fmt: skip
    figures = {
        "embedded_value": ratio(packages["onnx"]), "bits": bits, "int8_value": ratio(packages["int8"]),
        "samples_per_second": {name: round(speed.samples) for name, speed in speeds.items()},
    }  # fmt: skip
    return cards.Card(
        "wavenet", "wavenet: dilated causal convolutions for speech", "speech of one speaker, 8 kHz, mu-law codes",
        f"bits a sample, {len(rows['wavenet'])} test prompts", bits["wavenet"], f"{bits['wavenet']:.3f}",
        (names["linear"], f"{bits['linear']:.3f}"),
        _claims(rows, gains, loss, packages, speeds["wavenet"]), notes["wavenet"], figures,
        [(heading, text.format_map(values)) for heading, text in SECTIONS],
    )  # fmt: skip


def _parameters(path: Path) -> int:
    return sum(int(np.prod(tensor.dims)) for tensor in onnx.load(path).graph.initializer)


def _seen(notes: dict[str, Any]) -> int:
    """The samples that a training predicted."""
    return int(notes["epochs"] * notes["steps"] * notes["batch"] * notes["length"])
