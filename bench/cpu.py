"""The CPU target beside every runtime that is installed: products, convolutional networks, a transformer, real models.

    python bench/cpu.py [--row NAME ...] [--precision fp32,int8] [--case NAME ...] [--blocks 30] [--threads 1]
                        [--memory] [--folder DIR [--prepare] [--seconds 80]]

Engines take turns in blocks of at least a twentieth of a second, by the clock; a ratio is the best peer's time over
ours with the 95 % interval over the blocks, and a row of several cases has their geometric mean. A row is met when the
lower end of the interval is above its bar less 0.05, and missed when the upper end is below that.

Int8 models hold Q/DQ nodes from onnxruntime's quantiser; dlc and OpenVINO compile those, onnxruntime runs both of its
forms. Bf16 is dlc's scheme of that name, beside onnxruntime in fp32 and the others in bfloat16. Int4
has a scale for 32 k; beside it runs onnxruntime's MatMulNBits. `threads` times our two threads against our one.

With --folder, models, packages (in the compile cache) and times are kept: what was timed there is not timed again, so
that a row can be taken in pieces of --seconds. --prepare only makes what is timed. With --memory: the peak memory of
compiling and of running, each in a process of its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import networks
import numpy as np
import onnx
from engines import PRECISIONS, Feed, Run, dlc_session, files_of, peers
from turns import Times, measure, ratios, verdict

sys.path.insert(0, str(Path(__file__).parents[1]))

import dlc
from dlc.hardware import this_machine
from dlc.memory import compiling, running
from tests.feeds import FEEDS
from tests.models import LIGHT, light_model, package_model

ONE_THREAD = "dlc, one thread"


@dataclass(frozen=True)
class Case:
    """A model to time.

    Attributes:
        make: makes it.
        feed: makes its inputs; random numbers where there is none.
        only: the peers that count, all where it is empty; `ONE_THREAD` is ours, which then has two.
    """

    make: Callable[[], onnx.ModelProto]
    feed: Callable[[], Feed] | None = None
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """Cases whose geometric mean counts.

    Attributes:
        cases: by name.
        bars: by precision, how many times as fast as the best peer ours is to be.
        seconds: an engine's share of a block.
    """

    cases: Callable[[], dict[str, Case]]
    bars: Mapping[str, float]
    seconds: float = 0.05


WORST = 0.8  # the bar of a row's worst case


def _one(make: Callable[[], onnx.ModelProto], only: tuple[str, ...] = ()) -> Callable[[], dict[str, Case]]:
    return lambda: {"": Case(make, only=only)}


def _ragged() -> dict[str, Case]:
    rng = np.random.default_rng(7)
    sizes = [tuple(int(n) for n in rng.integers(1, 601, 3)) for _ in range(50)]
    return {"x".join(map(str, size)): Case(partial(networks.product, *size)) for size in sizes}


def _models() -> dict[str, Case]:
    """The onnx package's light models with seeded weights, and those inside PyPI packages with their largest feed."""
    found = {name: Case(partial(light_model, name), only=("onnxruntime",)) for name in LIGHT}
    for name in ("basic-pitch", "magika", *FEEDS):
        feed = partial(lambda name: FEEDS[name]()[-1], name) if name in FEEDS else None
        found[name] = Case(partial(lambda name: onnx.load(package_model(name)), name), feed, ("onnxruntime",))
    return found


# Three times as fast as the peers is a bar for tiles, which multiply eight times as fast as VNNI.
_TILES = "amx_int8" in this_machine().features
_PRODUCT = {"fp32": 1.1, "int8": 3.0 if _TILES else 1.0, "bf16": 1.0}
_VECTOR = {"fp32": 1.0, "bf16": 1.0, "int8": 1.2, "int4": 1.4}
_EQUAL = {"fp32": 1.0, "int8": 1.0}
ROWS = {
    "gemm32": Row(_one(partial(networks.product, 32, 1024, 1024)), _PRODUCT),
    "gemm256": Row(_one(partial(networks.product, 256, 1024, 1024)), _PRODUCT),
    "gemm1024": Row(_one(partial(networks.product, 1024, 1024, 1024)), _PRODUCT),
    "gemv": Row(_one(partial(networks.product, 1, 1024, 1024)), _VECTOR),
    "gemv4096": Row(_one(partial(networks.product, 1, 4096, 1024)), _VECTOR),
    "ragged": Row(_ragged, {"fp32": 1.0, "int8": 1.5}, 0.01),
    "resnet18": Row(_one(networks.resnet18), {"fp32": 1.05, "int8": 1.1, "bf16": 1.0}),
    "resnet18x8": Row(_one(partial(networks.resnet18, 8)), _EQUAL),
    "threads": Row(_one(partial(networks.resnet18, 8), (ONE_THREAD,)), {"int8": 1.7}),
    "mobilenet": Row(_one(networks.mobilenet), _EQUAL),
    "encoder": Row(_one(networks.encoder), {"fp32": 1.1, "int8": 1.3, "bf16": 1.0}),
    "models": Row(_models, {"fp32": 1.1}),
}


# --- one case --------------------------------------------------------------------------------------------------------


def _random_feed(model: onnx.ModelProto) -> Feed:
    rng, result = np.random.default_rng(0), {}
    constants = {t.name for t in model.graph.initializer}
    for given in model.graph.input:
        if given.name not in constants:
            shape = [d.dim_value or 1 for d in given.type.tensor_type.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
            values = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 256, shape)
            result[given.name] = values.astype(dtype)
    return result


def _engines(
    case: Case, precision: str, folder: Path, threads: int, cache: bool, memory: bool = False
) -> tuple[dict[str, Run], dict[str, str]]:
    """What runs the case, ours first; and notes: the compile time, the noise of ours against fp32."""
    path = folder / "model.onnx"
    if not path.is_file():
        onnx.save(case.make(), path)
    feed = case.feed() if case.feed else _random_feed(onnx.load(path))
    against_one = case.only == (ONE_THREAD,)
    ours = files_of(path, precision, feed)[0] if precision == "int8" else path

    def run(threads: int) -> Run:
        session = dlc_session(ours, precision, "cpu", threads, cache)
        return lambda: list(session.run(feed).values())

    started = time.perf_counter()
    engines = {"dlc": run(2 if against_one else threads)}
    notes = {} if cache else {"compile": f"{time.perf_counter() - started:.1f} s"}
    if against_one:
        return engines | {ONE_THREAD: run(1)}, notes
    wanted = peers(path, "fp32", feed, 1, ("onnxruntime",))["onnxruntime"]()
    notes["dB"] = _decibels(engines["dlc"](), wanted)
    engines |= peers(path, precision, feed, threads, case.only)
    if memory:
        package = dlc_session(ours, precision, "cpu", threads, cache).package
        notes["memory"] = _memory(package, files_of(path, precision, feed), folder, feed, threads, engines)
    return engines, notes


def _memory(
    package: dlc.Package, files: Sequence[Path], folder: Path, feed: Feed, threads: int, engines: Mapping[str, Run]
) -> str:
    """The peaks of all processes, in words; torch's is not told."""
    package.save(folder / "model.dlc")
    peaks = {"compiling": compiling(files[0], package.manifest["options"])}
    peaks["dlc"] = running("dlc", folder / "model.dlc", feed, threads)
    names = [name for name in engines if name.startswith("onnxruntime")]
    peaks |= {name: running("onnxruntime", file, feed, threads) for name, file in zip(names, files, strict=False)}
    if "openvino" in engines:
        peaks["openvino"] = running("openvino", files[0], feed, threads)
    return ", ".join(f"{name} {peak / 1e6:.0f} MB" for name, peak in peaks.items())


def _decibels(ours: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> str:
    pairs = [(mine.astype(np.float64), theirs.astype(np.float64)) for mine, theirs in zip(ours, wanted, strict=True)]
    noise = sum(np.square(mine - theirs).sum() for mine, theirs in pairs)
    return f"{-10 * np.log10(max(noise / sum(np.square(theirs).sum() for _, theirs in pairs), 1e-30)):.0f}"


# --- rows ------------------------------------------------------------------------------------------------------------


def _timed(row: Row, case: Case, precision: str, folder: Path, options: argparse.Namespace) -> Times | None:
    """The case's times, kept in its folder; none where it was to be prepared only."""
    kept = folder / f"{precision}-{options.threads}.npz"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        engines, notes = _engines(case, precision, folder, options.threads, options.folder is not None, options.memory)
        if options.prepare:
            return None
        times = measure(engines, options.blocks, row.seconds)
        print(f"  {_shown(times)}" + "".join(f", {key} {value}" for key, value in notes.items()), flush=True)
        np.savez(kept, **times)
    with np.load(kept) as archive:
        return dict(archive)


def _shown(times: Times) -> str:
    return ", ".join(f"{engine} {np.median(found):.3f} ms" for engine, found in times.items())


def _row(name: str, precision: str, folder: Path, options: argparse.Namespace, until: float) -> None:
    row, found = ROWS[name], {}
    for label, case in row.cases().items():
        if options.case and label not in options.case:
            continue
        if time.monotonic() > until:
            print(f"{name} {precision}: to be continued after {len(found)} cases", flush=True)
            return
        times = _timed(row, case, precision, folder / name / label, options)
        if times is None:
            print(f"{name} {precision} {label}: prepared", flush=True)
            continue
        best, found[label] = ratios(times)
        print(f"{name} {precision} {label}: {np.median(found[label]):.2f} times {best}; {_shown(times)}", flush=True)
    if found:
        least = min(len(each) for each in found.values())
        mean = np.exp(np.mean([np.log(each[:least]) for each in found.values()], axis=0))
        print(f"{name} {precision}: {verdict(mean, row.bars[precision])}", flush=True)
    if len(found) > 1:
        label = min(found, key=lambda each: float(np.median(found[each])))
        print(f"{name} {precision}, worst: {label} {verdict(found[label], WORST)}", flush=True)


def _chosen(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    for name in options.row or ROWS:
        yield from ((name, each) for each in ROWS[name].bars if each in options.precision)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", action="append", choices=list(ROWS), help="only these rows")
    parser.add_argument("--precision", type=lambda s: s.split(","), default=list(PRECISIONS))
    parser.add_argument("--case", action="append", help="only these cases of a row")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help="peak memory, too")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args(arguments)
    until = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder:
        for name, precision in _chosen(options):
            _row(name, precision, options.folder or Path(folder), options, until)


if __name__ == "__main__":
    main()
