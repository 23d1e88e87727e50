"""`make demo`: compile the embedded model in fp32 and int8, run it on real images, beside onnxruntime in the same run.

Everything comes from the repository: the model (trained by `dlc zoo train vision`), 500 calibration images and 1,000
test images of Fashion-MNIST. Writes its files to out/demo.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime_int8 import quantized_forms
from rich.console import Console
from rich.table import Table

import dlc
from dlc.bench import Timing, bench
from dlc.zoo import model_path
from dlc.zoo.vision.data import load_inputs

OUT = Path("out/demo")
BATCHES = (1, 32)


def classify(session: dlc.Session, images: np.ndarray, batch: int = 100) -> np.ndarray:
    """Logits (len(images), 10) from a session with a symbolic batch."""
    name = session.inputs[0].name
    parts = [session.run({name: images[i : i + batch]})["logits"] for i in range(0, len(images), batch)]
    return np.concatenate(parts)


def onnxruntime_logits(model: Path, images: np.ndarray) -> np.ndarray:
    """The same by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.asarray(session.run(["logits"], {name: images})[0])


def weight_bytes(package: dlc.Package) -> int:
    """Bytes of constants in a package."""
    names = package.manifest["build"]["constants"]
    return sum(package.constants(name)["constants"].nbytes for name in names)


def fastest(session: dlc.Session, images: np.ndarray, models: list[Path]) -> tuple[Timing, Timing]:
    """Times of the package and of the fastest of onnxruntime's `models`, taken in turns."""
    pairs = [bench(session, {session.inputs[0].name: images}, model, ["onnxruntime"]) for model in models]
    ours, peer = min(pairs, key=lambda pair: pair[1].ratio or 0.0)
    return ours, peer


def rows(
    kind: str, path: Path, peers: list[Path], images: np.ndarray, labels: np.ndarray
) -> tuple[list[list[str]], Any]:
    """The table's lines for one package, one a batch size, and its logits."""
    session = dlc.load(path)
    logits = classify(session, images)
    accuracy = f"{np.mean(logits.argmax(1) == labels):.1%}"
    weights = f"{weight_bytes(session.package) / 1e3:,.0f} kB"
    lines = []
    for batch in BATCHES:
        ours, peer = fastest(session, images[:batch], peers)
        ratio = f"{peer.ratio:.2f} ({peer.low:.2f}-{peer.high:.2f})"
        lines.append([kind, str(batch), accuracy, weights, f"{ours.median:,.0f}", f"{peer.median:,.0f}", ratio])
    return lines, logits


def main() -> None:
    """Compile, check, time, print."""
    console = Console()
    OUT.mkdir(parents=True, exist_ok=True)
    images, labels = load_inputs("test")
    calibration, _ = load_inputs("calibration")
    model = model_path("vision")
    with console.status("compiling fp32 and int8"):
        dlc.compile(model).save(OUT / "vision-fp32.dlc")
        dlc.compile(model, quantize="int8", calibration={"image": calibration}).save(OUT / "vision-int8.dlc")
        peers = quantized_forms(model, calibration[:, None], OUT)
    with console.status("running and timing"):
        fp32, logits = rows("fp32", OUT / "vision-fp32.dlc", [model], images, labels)
        int8, _ = rows("int8", OUT / "vision-int8.dlc", peers, images, labels)
    table = Table(title="Fashion-MNIST, 1,000 real test images, one thread", header_style="bold")
    for title in ("", "batch", "accuracy", "weights", "dlc, us", "peer, us", "times faster"):
        table.add_column(title, justify="right", no_wrap=True)
    for line in (*fp32, *int8):
        table.add_row(*line)
    console.print(table)
    expected = onnxruntime_logits(model, images)
    agree, gap = np.mean(expected.argmax(1) == labels), np.abs(logits - expected).max()
    console.print(f"onnxruntime's accuracy in fp32: {agree:.1%}; the logits differ by at most {gap:.1e}")
    console.print("the peer is onnxruntime; in int8, the faster of its QDQ and QOperator forms; 95 % intervals")
    for path in sorted(OUT.glob("*.dlc")):
        console.print(f"{path}: {path.stat().st_size / 1e3:,.0f} kB")
    console.print(f"next: [bold].venv/bin/dlc explain {OUT}/vision-int8.dlc[/bold]")


if __name__ == "__main__":
    main()
