"""The CPU target beside every runtime that is installed: products, convolutional networks, a transformer.

    python bench/cpu.py [--row NAME ...] [--blocks 30] [--threads 1] [--quantize none,bf16,int8] [--memory]

Rows: gemm32, gemm256, gemm1024, gemv, gemv4096, ragged, resnet18, resnet18x8, mobilenet, encoder. Int8 models hold
Q/DQ nodes from onnxruntime's quantiser; dlc and OpenVINO compile those, onnxruntime runs both of its forms. Bf16 (the
GEMVs, unless --quantize says else) is dlc's with bfloat16 weights beside the others in fp32. Engines
take turns in blocks of at least a twentieth of a second, by the clock; a ratio is the best peer's time over ours with
the 95 % interval over the blocks. With --memory: the peak memory of compiling and of running, each in a process of
its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnx
from onnxruntime_int8 import quantized_forms

sys.path.insert(0, str(Path(__file__).parents[1]))

import dlc
from dlc.bench import interval, onnxruntime_session, openvino_run
from dlc.memory import compiling, running

ROWS: dict[str, Callable[[], onnx.ModelProto]] = {
    "gemm32": lambda: networks.product(32, 1024, 1024),
    "gemm256": lambda: networks.product(256, 1024, 1024),
    "gemm1024": lambda: networks.product(1024, 1024, 1024),
    "gemv": lambda: networks.product(1, 1024, 1024),
    "gemv4096": lambda: networks.product(1, 4096, 1024),
    "resnet18": networks.resnet18,
    "resnet18x8": lambda: networks.resnet18(8),
    "mobilenet": networks.mobilenet,
    "encoder": networks.encoder,
}
Run = Callable[[], Any]


def _ragged() -> Iterator[tuple[str, onnx.ModelProto]]:
    rng = np.random.default_rng(7)
    for number in range(50):
        rows, inner, columns = (int(n) for n in rng.integers(1, 601, 3))
        yield f"ragged {number}: {rows}x{inner}x{columns}", networks.product(rows, inner, columns)


def _engines(
    model: onnx.ModelProto, scheme: str, threads: int, folder: Path, memory: bool = False
) -> tuple[dict[str, Run], dict[str, str]]:
    """What runs the model, ours first; and notes: the compile time, errors against fp32."""
    path = folder / "model.onnx"
    onnx.save(model, path)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(0)
    feed = {"x": rng.standard_normal(shape).astype(np.float32)}
    files = [path]
    int8 = scheme == "int8"
    if int8:
        samples = np.stack([feed["x"], *rng.standard_normal((3, *shape)).astype(np.float32)])
        files = quantized_forms(path, samples, folder)
    started = time.perf_counter()
    session = dlc.load(dlc.compile(files[0], quantize="none" if int8 else scheme, cache=False), threads=threads)
    notes = {"compile": f"{time.perf_counter() - started:.1f} s"}
    engines: dict[str, Run] = {"dlc": lambda: session.run(feed)["y"]}
    for file in files:
        form = "" if not int8 else " QDQ" if "qdq" in file.name else " QOperator"
        peer = onnxruntime_session(str(file), threads)
        engines[f"onnxruntime{form}"] = lambda peer=peer: peer.run(None, feed)[0]  # type: ignore[misc]
    try:
        engines["openvino"] = openvino_run(files[0], feed, threads)[1]
    except ImportError:
        notes["openvino"] = "not installed"
    wanted = onnxruntime_session(str(path)).run(None, feed)[0]
    error = np.square(engines["dlc"]() - wanted).sum() / np.square(wanted).sum()
    notes["dB"] = f"{-10 * np.log10(max(float(error), 1e-30)):.0f}"
    if memory:
        notes["memory"] = _memory(session.package, folder, files, feed, threads, "openvino" in engines)
    return engines, notes


def _memory(
    package: dlc.Package, folder: Path, files: Sequence[Path], feed: dict[str, Any], threads: int, openvino: bool
) -> str:
    """The peaks of all processes, in words."""
    package.save(folder / "model.dlc")
    peaks = {"compiling": compiling(files[0], package.manifest["options"])}
    peaks["dlc"] = running("dlc", folder / "model.dlc", feed, threads)
    for file in files:
        form = "" if len(files) == 1 else " QDQ" if "qdq" in file.name else " QOperator"
        peaks[f"onnxruntime{form}"] = running("onnxruntime", file, feed, threads)
    if openvino:
        peaks["openvino"] = running("openvino", files[0], feed, threads)
    return ", ".join(f"{name} {peak / 1e6:.0f} MB" for name, peak in peaks.items())


def _measure(engines: dict[str, Run], blocks: int, seconds: float = 0.05) -> dict[str, np.ndarray]:
    """Milliseconds a run, of every block."""
    counts = {}
    for name, run in engines.items():
        run()
        started = time.perf_counter()
        run()
        counts[name] = max(1, int(seconds / max(time.perf_counter() - started, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(blocks):
        for name, run in engines.items():
            run()
            started = time.perf_counter()
            for _ in range(counts[name]):
                run()
            times[name].append((time.perf_counter() - started) / counts[name] * 1e3)
    return {name: np.array(found) for name, found in times.items()}


def _against(times: dict[str, np.ndarray]) -> tuple[str, float, float, float]:
    """(the best peer, its time over ours, the interval)."""
    best = min((name for name in times if name != "dlc"), key=lambda name: float(np.median(times[name])))
    return best, *interval(times["dlc"], times[best])


def _label(scheme: str) -> str:
    return "fp32" if scheme == "none" else scheme


def _row(name: str, options: argparse.Namespace, scheme: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        engines, notes = _engines(ROWS[name](), scheme, options.threads, Path(folder), options.memory)
        times = _measure(engines, options.blocks)
    best, middle, low, high = _against(times)
    shown = ", ".join(f"{engine} {np.median(found):.3f} ms" for engine, found in times.items())
    said = ", ".join(f"{key} {value}" for key, value in notes.items())
    label = f"{name} {_label(scheme)}"
    print(f"{label}: {middle:.2f} ({low:.2f}-{high:.2f}) times {best}; {shown}; {said}", flush=True)


def _ragged_row(options: argparse.Namespace, scheme: str) -> None:
    found = []
    for label, model in _ragged():
        with tempfile.TemporaryDirectory() as folder:
            engines, _ = _engines(model, scheme, options.threads, Path(folder))
            found.append((_against(_measure(engines, max(3, options.blocks // 6), 0.01))[1], label))
    ratios = np.array([ratio for ratio, _ in found])
    worst = min(found)
    mean = float(np.exp(np.log(ratios).mean()))
    label = f"ragged {_label(scheme)}"
    print(f"{label}: geometric mean {mean:.2f}, worst {worst[0]:.2f} ({worst[1]})", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", action="append", choices=[*ROWS, "ragged"], help="only these rows")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quantize", type=lambda s: s.split(","))
    parser.add_argument("--memory", action="store_true", help="peak memory, too")
    options = parser.parse_args(arguments)
    for name in options.row or [*ROWS, "ragged"]:
        bound_by_memory = ["bf16"] if name.startswith("gemv") else []
        for scheme in options.quantize or ["none", *bound_by_memory, "int8"]:
            if name == "ragged":
                _ragged_row(options, scheme)
            else:
                _row(name, options, scheme)


if __name__ == "__main__":
    main()
