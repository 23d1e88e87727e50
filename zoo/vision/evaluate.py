"""Accuracy of the vision model, and the card that records it."""

from __future__ import annotations

import math
import platform
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dlc import zoo
from dlc.zoo import cards, measured
from dlc.zoo.family import Report, Score
from dlc.zoo.measured import Measured
from dlc.zoo.models import Model, OnnxModel, run_in_batches
from dlc.zoo.vision import compare, data

_TRAININGS = "trainings.npz"
_HELD_OUT = 5_000  # training images, the last ones, of which no training has seen any


@dataclass(frozen=True)
class Accuracy:
    """How many of how many images got their own class, and the wall time in seconds that took."""

    correct: int
    count: int
    seconds: float

    @property
    def value(self) -> float:
        """The share of correct images, 0..1."""
        return self.correct / self.count

    @property
    def margin(self) -> float:
        """Half of the 95 % interval of `value` as a sample's share (normal approximation)."""
        return 1.96 * math.sqrt(self.value * (1 - self.value) / self.count)


def accuracy(model: Model, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Accuracy:
    """Measure top-1 accuracy.

    Args:
        model: maps ``image`` float32 (n, 1, 28, 28) to ``logits`` (n, 10).
        images: pixels, uint8 (n, 1, 28, 28); normalised here.
        labels: uint8 (n,), 0..9.
    """
    start = time.perf_counter()
    logits = run_in_batches(model, {"image": data.normalise(images)})["logits"]
    seconds = time.perf_counter() - start
    return Accuracy(int((logits.argmax(1) == labels).sum()), len(labels), seconds)


def load_test_set(full: bool, directory: Path | None = None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Load the 10,000 test images or the 1,000 embedded ones: uint8 (n, 1, 28, 28), and labels uint8 (n,).

    Raises:
        DlcError: the full set is asked for and missing; see `data.find_dataset`.
    """
    return data.load_full("test", directory) if full else data.load_excerpt("test")


def evaluate(model: Model, full: bool, directory: Path | None) -> Score:
    """Measure top-1 accuracy on the full or the embedded test set."""
    score = accuracy(model, *load_test_set(full, directory))
    text = f"top-1 accuracy {score.value:.2%} ({score.correct} of {score.count} images, {score.seconds:.1f} s)"
    details = {"correct": score.correct, "count": score.count, "seconds": score.seconds}
    return Score("top-1 accuracy", score.value, text, details)


def count_work(path: Path) -> tuple[int, int]:
    """Return the parameters of an ONNX model and the multiply-adds of its Conv and Gemm nodes for one image.

    A Conv costs its weights times its output pixels, a Gemm its weights.
    """
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    pixels = {
        value.name: math.prod(dim.dim_value for dim in value.type.tensor_type.shape.dim[2:])
        for value in [*graph.value_info, *graph.output]
    }
    work = sum(sizes[n.input[1]] * pixels[n.output[0]] for n in graph.node if n.op_type in ("Conv", "Gemm"))
    return sum(sizes.values()), work


def write_card(weights: Path | None, directory: Path | None, report: Report) -> Path:
    """Measure the committed ONNX on the full and the embedded test set and write ``card.md``; return its path.

    Args:
        weights: the training run's safetensors file, for its notes; by default the present card's are kept.
        directory: the folder of the full set; see `data.find_dataset`.
        report: told what is being measured.

    Raises:
        DlcError: the full set or onnxruntime is missing, or there are no notes on this model's training.
    """
    from dlc.zoo.vision import trainings  # torch

    path = zoo.model_path("vision")
    notes = cards.training_notes("vision") if weights is None else trainings.read_notes(weights)
    model = OnnxModel(path)
    report("measuring the full test set")
    images, labels = load_test_set(True, directory)
    full, embedded = accuracy(model, images, labels), accuracy(model, *load_test_set(False))
    kept = path.with_name(_TRAININGS)
    found = trainings.measure(images, measured.read(kept), report)
    measured.write(kept, found)
    report("the cascade")
    held_out = data.load_full("train", directory)[0][-_HELD_OUT:]
    works = {name: count_work(compare.model_file(f"{name}.onnx")) for name in ("student", "teacher")}
    cascade = compare.measure_cascade(held_out, images, labels, (works["student"][1], works["teacher"][1]))
    return cards.write_card(_card(full, embedded, notes, found, compare.Hits.read(found, labels), cascade, works))


def _card(
    full: Accuracy,
    embedded: Accuracy,
    notes: dict[str, Any],
    found: Mapping[str, Measured],
    hits: compare.Hits,
    cascade: compare.Cascade,
    works: dict[str, tuple[int, int]],
) -> cards.Card:
    path = zoo.model_path("vision")
    parameters, work = count_work(path)
    members = len(hits.of.get("teacher", {}))
    ensemble = (members * works["teacher"][0], members * works["teacher"][1])
    works |= {"plain-teacher": works["teacher"], "distilled": works["student"], "ensemble": ensemble}
    trained = Counter(cards.trained_on(m.notes) for m in found.values() if "seed" in m.notes)
    values = {
        "devices": ", ".join(f"{where} ({number})" for where, number in trained.most_common()),
        "full": full, "embedded": embedded, "parameters": parameters, "work": work / 1e6, "notes": notes,
        "minutes": notes["seconds"] / 60, "machine": platform.machine(), "trained_on": cards.trained_on(notes),
        "size": path.stat().st_size / 1e3, "table": compare.table(hits, works), "cascade": cascade,
        "agreement": compare.AGREEMENT, "held_out": _HELD_OUT,
        "teacher_size": compare.model_file(compare.TEACHER).stat().st_size / 1e3,
        "student_size": compare.model_file(compare.STUDENT).stat().st_size / 1e3,
    }  # fmt: skip
    published = 0.876
    claim = cards.Claim(
        "A small convolutional network, with no preprocessing but scaling, reaches the range published for networks "
        "of two convolutions (0.876 to 0.939) on Fashion-MNIST",
        full.value >= published,
        f"{full.value:.4f} ± {full.margin:.4f}",
    )
    return cards.Card(
        "vision", "vision: a residual CNN for Fashion-MNIST", "Fashion-MNIST, 10 classes",
        "top-1 accuracy, 10,000 test images", full.value, f"{full.value:.2%}",
        ("two convolutions, as published", "87.6 % to 93.9 %"), [claim, *compare.claims(hits, cascade)], notes,
        {
            "embedded_value": embedded.value, "parameters": parameters, "multiply_adds": work,
            "cascade": {"accuracy": cascade.accuracy, "teacher": cascade.teacher, "cost": cascade.cost},
        },
        [(heading, text.format_map(values)) for heading, text in _SECTIONS],
    )  # fmt: skip


_SECTIONS = (
    (
        "Model",
        """
A 3x3 stem, three residual blocks (16 channels at 28x28, 48 at 14x14, 96 at 7x7; the last two change shape through a
strided 1x1 projection), global average pool and a dense layer to ten classes. {parameters:,} parameters with the batch
norms folded, {work:.1f} million multiply-adds an image, {size:.0f} kB as ONNX (opset 17). Operators: Conv, Relu, Add,
GlobalAveragePool, Flatten, Gemm.

- Input `image`, float32 (N, 1, 28, 28): `(pixel / 255 - 0.286) / 0.353` for grey levels 0..255.
- Output `logits`, float32 (N, 10): T-shirt/top, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag,
  ankle boot.
""",
    ),
    (
        "Figures",
        """
| Set | Images | Top-1 accuracy | 95 % interval |
|---|---|---|---|
| full test set | {full.count:,} | {full.value:.2%} | ± {full.margin:.2%} |
| embedded excerpt `test.npz` | {embedded.count:,} | {embedded.value:.2%} | ± {embedded.margin:.2%} |
| held-out training images | 5,000 | {notes[held_out]:.2%} | |

Measured in float32 with onnxruntime. The test set took no part in training or in choosing the configuration.
The embedded excerpt is a random draw, so its figure differs from the full one by chance; compare a compiled model
with the float model on the same images.

For comparison, the table in Fashion-MNIST's own README reports (not measured here, other training recipes) 0.876 to
0.939 for networks of two convolutions and 0.949 for ResNet-18.
""",
    ),
    (
        "Teachers, students and a cascade",
        """
{table}

On the full test set; `trainings.npz` has the answers of each training. The *teacher* is the network above with two
residual blocks a stage and dropout of 0.3 before the dense layer, trained for 12 epochs; without dropout and
augmentation it is *without both*. The *ensemble* is the mean of their probabilities. The *student* has 8, 16 and 32
channels, and is trained like the small network: from the labels, or *distilled*, where nine tenths of the loss are the
cross-entropy with the teacher's softened probabilities (temperature 4; Hinton, Vinyals and Dean 2015,
arXiv:1503.02531), the teacher, seed 0, seeing the student's own view of each image. `teacher.onnx` ({teacher_size:.0f}
kB) and `student.onnx` ({student_size:.0f} kB, distilled) are those of seed 0. What the trainings ran on: {devices}.

The cascade is `dlc compile student.onnx --cascade teacher.onnx --agreement {agreement}`, calibrated with the
{held_out:,} held-out training images: the teacher is asked where the student's largest probability is below
{cascade.threshold:.3f}. On the test set that is {cascade.asked:.1%} of the images; the cascade gets
{cascade.accuracy:.2%}, the student alone {cascade.student:.2%} and the teacher alone {cascade.teacher:.2%}. Its mean
cost is {cascade.cost:.1%} of the teacher's in multiply-adds (the student for all images, the teacher for those).
""",
    ),
    (
        "Training",
        """
{notes[epochs]} epochs over {notes[images]} images, SGD with Nesterov momentum, one-cycle learning rate with peak
{notes[peak_rate]}, weight decay {notes[weight_decay]}, batches of {notes[batch]}, mirrored and shifted by up to one
pixel, seed {notes[seed]}. It took {minutes:.1f} minutes on {trained_on} ({machine}, torch {notes[torch]},
a machine shared with other work).
""",
    ),
    (
        "Reproduce",
        """
    pip install 'dlc[zoo,bench]'
    dlc zoo fetch vision
    dlc zoo train vision --out vision.onnx
    dlc zoo eval vision --onnx vision.onnx --full
    dlc zoo train vision --size teacher --seed 1 --out teacher.onnx    # about 30 minutes; plain-teacher, student alike
    dlc zoo distill vision --seed 1 --out student.onnx    # trains the teacher of seed 0 where the cache has none
    dlc compile student.onnx -o cascade.dlc --cascade teacher.onnx --agreement 0.995 --calibration zoo:vision
    dlc zoo eval vision --package cascade.dlc --full
    dlc zoo eval vision --write-card --weights vision.safetensors    # of a clone, once vision.onnx is in its place

Training is deterministic for one machine and one version of torch; elsewhere rounding differs, and the accuracy by a
few tenths of a point.
""",
    ),
    (
        "Data and licence",
        """
Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747), © 2017 Zalando SE, under the MIT licence, taken from the
Debian package `dataset-fashion-mnist`. `test.npz` holds 1,000 of its test images and `calibration.npz` 500 of its
training images, seeded random draws that are not balanced by class. The MIT licence covers these two files:

> Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
> documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
> rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
> persons to whom the Software is furnished to do so, subject to the following conditions: The above copyright notice
> and this permission notice shall be included in all copies or substantial portions of the Software. THE SOFTWARE IS
> PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
> MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT
> HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE,
> ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.

The weights are under the project's own licence. The model serves tests and benchmarks; it is of no use for telling
real clothes apart.
""",
    ),
)
