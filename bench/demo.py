"""`make demo`: compile the embedded model in fp32 and int8, run it on real images, beside onnxruntime in the same run.

Everything comes from the repository: the model (trained by `dlc zoo train vision`), 500 calibration images and 1,000
test images of Fashion-MNIST. Writes its files to out/demo.
"""

from __future__ import annotations

from pathlib import Path

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
    return sum(array.nbytes for array in package.constants("constants.safetensors").values())


def fastest(session: dlc.Session, images: np.ndarray, models: list[Path]) -> Timing | None:
    """Times of the package and of onnxruntime on each of `models`; the latter's best, with its ratio to ours."""
    best: Timing | None = None
    name = session.inputs[0].name
    for model in models:
        peer = bench(session, {name: images}, model, ["onnxruntime"])[1]
        best = peer if best is None or peer.ratio < best.ratio else best
    return best


def row(kind: str, path: Path, models: list[Path], images: np.ndarray, labels: np.ndarray) -> tuple[list[str], np.ndarray]:
    """One line of the table, and the logits."""
    session = dlc.load(path)
    logits = classify(session, images)
    cells = [kind, f"{np.mean(logits.argmax(1) == labels):.1%}"]
    cells += [f"{path.stat().st_size / 1e3:,.0f} kB", f"{weight_bytes(session.package) / 1e3:,.0f} kB"]
    for batch in BATCHES:
        name = session.inputs[0].name
        ours = bench(session, {name: images[:batch]})[0]
        peer = fastest(session, images[:batch], models)
        assert peer is not None
        cells += [f"{ours.median:,.0f} us", f"{peer.median:,.0f} us", f"{peer.ratio:.2f} ({peer.low:.2f}-{peer.high:.2f})"]
    return cells, logits


def main() -> None:
    """Compile, check, time, print."""
    console = Console()
    OUT.mkdir(parents=True, exist_ok=True)
    images, labels = load_inputs("test")
    calibration, _ = load_inputs("calibration")
    model = model_path("vision")
    with console.status("compiling fp32 and int8"):
        dlc.compile(model).save(OUT / "vision-fp32.dlc")
        data = {"image": calibration}
        dlc.compile(model, quantize="int8", calibration=data).save(OUT / "vision-int8.dlc")
        peers = quantized_forms(model, calibration, OUT)
    with console.status("running and timing, fp32"):
        fp32, logits = row("fp32", OUT / "vision-fp32.dlc", [model], images, labels)
    with console.status("running and timing, int8"):
        int8, _ = row("int8", OUT / "vision-int8.dlc", peers, images, labels)
    expected = onnxruntime_logits(model, images)
    table = Table(title="Fashion-MNIST, 1,000 real test images, one thread", header_style="bold")
    for title in ("", "accuracy", "package", "constants"):
        table.add_column(title, justify="right")
    for batch in BATCHES:
        for title in (f"batch {batch}: dlc", "onnxruntime", "times faster"):
            table.add_column(title, justify="right")
    table.add_row(*fp32)
    table.add_row(*int8)
    console.print(table)
    agree = np.mean(expected.argmax(1) == labels)
    gap = np.abs(logits - expected).max()
    console.print(f"onnxruntime's accuracy in fp32: {agree:.1%}; the logits differ by at most {gap:.1e}")
    console.print("onnxruntime's int8 is the faster of its QDQ and QOperator forms; intervals are 95 %")
    console.print(f"next: [bold].venv/bin/dlc explain {OUT}/vision-int8.dlc[/bold]")


if __name__ == "__main__":
    main()
