"""The likelihood of WaveNet, and the card: beside a linear predictor and an LSTM, in int8, and while it generates."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlc import zoo
from dlc.zoo import cards
from dlc.zoo.exporting import count_parameters, read_notes
from dlc.zoo.family import Report, Score
from dlc.zoo.models import QUANTIZED, Model, OnnxModel, compiled
from dlc.zoo.statistics import Interval, paired_bootstrap, ratio
from dlc.zoo.wavenet import data, graphs, linear, pictures, sample

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
    embedded = load_test_set(False)
    packages: dict[str, Rows] = {}
    for quantize in QUANTIZED:
        packages[quantize] = score_rows(compiled("wavenet", quantize), embedded)
    packages["onnx"] = score_rows(OnnxModel(model_file("wavenet")), embedded)
    report("generating")
    speeds = _generate(directory, report)
    return cards.write_card(_card(rows, packages, speeds, sum(map(len, training))))


def model_file(name: str) -> Path:
    """The committed ONNX file of a size: ``wavenet``, ``mel`` or ``lstm``."""
    return zoo.model_path("wavenet").with_name(f"{name}.onnx")


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
    notes = {name: read_notes(model_file(name), "wavenet") for name in _MODELS}
    bits = {name: ratio(found) for name, found in rows.items()}
    sizes = {name: count_parameters(model_file(name)) for name in _MODELS}
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
        "notes": notes["wavenet"], "trained_on": cards.trained_on(notes["wavenet"]), "there": there,
        "size": zoo.model_path("wavenet").stat().st_size / 1e3, "seen": _seen(notes["wavenet"]),
    }  # fmt: skip
    figures = {
        "embedded_value": ratio(packages["onnx"]), "bits": bits, "int8_value": ratio(packages["int8"]),
        "samples_per_second": {name: round(speed.samples) for name, speed in speeds.items()},
    }  # fmt: skip
    return cards.Card(
        "wavenet", "wavenet: dilated causal convolutions for speech", "speech of one speaker, 8 kHz",
        "bits a sample, test part", bits["wavenet"], f"{bits['wavenet']:.3f}",
        ("linear prediction", f"{bits['linear']:.3f}"),
        _claims(rows, gains, loss, packages, speeds["wavenet"]), notes["wavenet"], figures,
        [(heading, text.format_map(values)) for heading, text in _SECTIONS],
    )  # fmt: skip


def _seen(notes: dict[str, Any]) -> int:
    """The samples that a training predicted."""
    return int(notes["epochs"] * notes["steps"] * notes["batch"] * notes["length"])


_SECTIONS = (
    (
        "Model",
        """
Twice eight layers with dilations 1, 2, ... 128 (a receptive field of 511 samples, 64 ms), kernel 2, gated activations,
32 residual and 64 skip channels; a code is embedded, and the logits of the next come from two 1x1 convolutions behind
the sum of all skips (van den Oord et al. 2016, arXiv:1609.03499). {size:.0f} kB as ONNX (opset 17).

- Input `codes`, int64 (1, T): mu-law codes 0..255 of speech at 8 kHz, each before the one that is predicted; 128 first.
- Output `logits`, float32 (1, 256, T): those at t tell of the code behind t.

`mel.onnx` is the same network with an input `mel`, float32 (1, 24, T): log-mel frames of the sound that is spoken, a
frame for 80 samples, repeated for each of them, through a 1x1 convolution into every layer. `lstm.onnx` is the LSTM of
the comparison, of 128 units over the same embedding.
""",
    ),
    (
        "Figures",
        """
{prompts} test prompts, {samples:,} samples, in float32 with onnxruntime:

{table}

The three networks were trained alike: the same number of segments, drawn alike, with the same learning rates, on a
machine shared with other work, so the seconds do not compare.

Compiled by dlc for the processor, on the embedded excerpt (24 middle seconds of test prompts): {fp32:.4f} bits a sample
in float32 (onnxruntime {onnx:.4f}) and {int8:.4f} in int8, which is more by {loss}.
""",
    ),
    (
        "Generation",
        """
`dlc zoo sample wavenet --out speech.wav` makes the generation from the model's weights as one ONNX Loop, whose delay
lines are replaced row by row, and compiles it to native code. On one core of a machine shared with other work (median
of five): {alone.samples:,.0f} samples a second, {alone.times:.1f} times real time; conditioned on mel frames
{mel.samples:,.0f}, {mel.times:.1f} times real time.

![Spectrograms](spectrograms.png)

0 to 4 kHz, 5 ms a column. Above the test prompt `{pictured}` as it was recorded; in the middle as the conditioned model
speaks it from its mel frames; below what the unconditioned model says by itself.
""",
    ),
    (
        "What is missing",
        """
- From mel frames it speaks the prompt with its pitch and its harmonics, and some noise between them, as the picture
  shows. Without them it babbles: voiced and unvoiced sounds and pauses, no words.
- No part of this family turns text into mel frames.
- The mel frames are of 32 ms, centred on what is predicted, so they tell something of the samples to come: the bits of
  the conditioned model do not compare with those of the others as predictions, only as descriptions.
- One speaker, telephone quality, 8-bit mu-law.
""",
    ),
    (
        "Training",
        """
{notes[epochs]} epochs of {notes[steps]} steps of {notes[batch]} segments of {notes[length]} samples, Adam with a
one-cycle learning rate (peak {notes[peak_rate]}), gradients of norm 1 at most, seed
{notes[seed]}: {seen:,} samples, where the training part has {there:,}. It took {notes[seconds]:.0f} s on
{trained_on} (torch {notes[torch]}, a machine shared with other work). The segments of the validation part that were
watched were at {notes[held_out]:.3f} bits a sample in the end. Without `--epochs` training stops after 10, which a
processor does in a quarter of an hour.
""",
    ),
    (
        "Reproduce",
        """
    pip install 'dlc[zoo,bench]'
    dlc zoo fetch wavenet
    dlc zoo train wavenet --epochs {notes[epochs]} --out wavenet.onnx    # and --device cuda, without it hours
    dlc zoo train wavenet --epochs {notes[epochs]} --size mel --out mel.onnx
    dlc zoo train wavenet --epochs {notes[epochs]} --size lstm --out lstm.onnx
    dlc zoo eval wavenet --onnx wavenet.onnx --full
    dlc zoo sample wavenet --out speech.wav --count 1
    dlc zoo sample wavenet --out speech.wav --count 1 --prompt vm-tocallnum
    dlc zoo eval wavenet --write-card    # of a clone, once the three files are in their place

Training is deterministic for one machine and one version of torch.
""",
    ),
    (
        "Data and licence",
        """
The English prompts of Asterisk, spoken by Allison Smith, (c) 2003-2010, financed by Digium, Inc., under
CC-BY-SA-3.0, from the Debian package `asterisk-core-sounds-en-wav`: 558 recordings of 24.6 minutes without those of
silence, split by the CRC-32 of their names into training, validation and test parts of about 80, 10 and 10 %.
`test.npz` holds the middle second of 24 test prompts, `calibration.npz` the middle half second of 16 training prompts,
as mu-law codes, under the same licence.
""",
    ),
)
