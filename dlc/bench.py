"""Timing a package, alone or beside other runtimes in the same process.

Engines take turns in blocks, so that a machine that slows down slows all of them; the ratio is that of block medians,
with a bootstrap interval over the blocks.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dlc import memory
from dlc.errors import DlcError
from dlc.package import Package
from dlc.runtime.session import Session

BLOCKS = 20
_SECONDS = 2.0  # an engine's share when the number of iterations is not given
_LEAST, _MOST = 40, 2000
_RESAMPLES = 2000

Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """One engine's times for one run, in microseconds.

    Attributes:
        engine: its name and version.
        median, mean, minimum, p90, p99: over all iterations.
        ratio: the engine's time over the package's (above 1: the package is faster), from block medians.
        low, high: its 95 % interval.
        peak: bytes of memory that a process which loads the model and runs it ever held; None where not asked for.
        compile_peak: those of one that compiles it.
    """

    engine: str
    iterations: int
    median: float
    mean: float
    minimum: float
    p90: float
    p99: float
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    peak: int | None = None
    compile_peak: int | None = None


# --- engines ---------------------------------------------------------------------------------------------------------


def _package(session: Session, inputs: Mapping[str, np.ndarray]) -> tuple[str, Run]:
    target = session.package.manifest.get("target", "?")
    return f"dlc {target}", lambda: session.run(inputs)


def onnxruntime_session(model: str | bytes, threads: int = 1) -> Any:
    """onnxruntime's session of a model, a path or serialised, on the CPU; on one thread it never spins."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads == 1 else "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _onnxruntime(model: Path, inputs: Mapping[str, np.ndarray], threads: int) -> tuple[str, Run]:
    import onnxruntime

    session, feeds = onnxruntime_session(str(model), threads), dict(inputs)
    return f"onnxruntime {onnxruntime.__version__}", lambda: session.run(None, feeds)


def openvino_run(model: Path, inputs: Mapping[str, np.ndarray], threads: int, exact: bool = True) -> tuple[str, Run]:
    """OpenVINO's name and version, and what runs a model once; raises ImportError where it is not installed.

    Unless `exact` it computes float32 in bfloat16 where the CPU has that.
    """
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    if exact:
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    network = core.read_model(str(model))
    network.reshape({name: list(array.shape) for name, array in inputs.items()})
    request = core.compile_model(network, "CPU", settings).create_infer_request()
    feeds = dict(inputs)
    return f"openvino {openvino.__version__}", lambda: request.infer(feeds, share_inputs=True)


_PEERS: dict[str, Callable[[Path, Mapping[str, np.ndarray], int], tuple[str, Run]]] = {
    "onnxruntime": _onnxruntime,
    "openvino": openvino_run,
}


def peer(name: str, model: Path, inputs: Mapping[str, np.ndarray], threads: int) -> tuple[str, Run]:
    """Another runtime's name and version, and what runs the model once; DlcError where it is unknown or cannot."""
    if name not in _PEERS:
        raise DlcError(f"unknown runtime '{name}' to compare with; known: {', '.join(sorted(_PEERS))}")
    try:
        return _PEERS[name](model, inputs, threads)
    except ImportError:
        raise DlcError(f"{name} is not installed: pip install {name}") from None
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DlcError(f"{model}: {name} cannot load it: {reason}") from error


# --- timing ----------------------------------------------------------------------------------------------------------


def _time(run: Run, count: int) -> np.ndarray:
    clock, times = time.perf_counter_ns, np.empty(count)
    for index in range(count):
        started = clock()
        run()
        times[index] = clock() - started
    return times / 1e3


def _iterations(run: Run) -> int:
    """As many as fit in an engine's share of time."""
    one = float(np.median(_time(run, 3))) / 1e6
    return int(min(max(_SECONDS / max(one, 1e-9), _LEAST), _MOST))


def interval(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """The median ratio of blocks and its 95 % bootstrap interval, with a fixed seed: a function of the times."""
    ratios = theirs / ours
    picks = np.random.default_rng(0).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    spread = np.median(ratios[picks], axis=1)
    return float(np.median(ratios)), float(np.quantile(spread, 0.025)), float(np.quantile(spread, 0.975))


def _timing(engine: str, blocks: Sequence[np.ndarray], first: Sequence[np.ndarray] | None) -> Timing:
    times = np.concatenate(blocks)
    p90, p99 = np.quantile(times, [0.9, 0.99])
    numbers = (float(np.median(times)), float(times.mean()), float(times.min()), float(p90), float(p99))
    if first is None:
        return Timing(engine, times.size, *numbers)
    medians = [np.array([np.median(block) for block in each]) for each in (first, blocks)]
    return Timing(engine, times.size, *numbers, *interval(*medians))


def bench(
    session: Session,
    inputs: Mapping[str, np.ndarray],
    model: Path | None = None,
    against: Sequence[str] = (),
    iterations: int | None = None,
    warmup: int = 10,
    threads: int = 1,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> list[Timing]:
    """Time the package, then each runtime of `against` on `model`, with the same inputs and number of threads.

    Returns:
        A `Timing` an engine, the package's first.

    Raises:
        DlcError: a runtime is unknown or not installed, or cannot load the model; inputs that do not fit.
    """
    if against and model is None:
        raise DlcError("comparing with another runtime needs the model: --model MODEL.onnx")
    session.run(inputs)  # wrong inputs are the user's error, and say so better than a runtime would
    engines = [_package(session, inputs)]
    engines += [peer(name, model, inputs, threads) for name in against if model is not None]
    for _, run in engines:
        _time(run, max(warmup, 1))
    count = iterations or max(_iterations(run) for _, run in engines)
    blocks = min(BLOCKS, count)
    sizes = [len(part) for part in np.array_split(np.arange(count), blocks)]
    times: list[list[np.ndarray]] = [[] for _ in engines]
    for number, size in enumerate(sizes):
        for (name, run), collected in zip(engines, times, strict=True):
            progress(name, number, blocks)
            run()  # the other engine has just filled the caches
            collected.append(_time(run, size))
    names = [name for name, _ in engines]
    return [_timing(name, t, times[0] if t is not times[0] else None) for name, t in zip(names, times, strict=True)]


def with_memory(
    timings: Sequence[Timing],
    package: Package,
    inputs: Mapping[str, np.ndarray],
    model: Path | None,
    against: Sequence[str],
    threads: int = 1,
) -> list[Timing]:
    """What `bench` found with these arguments, and the peak memory of each engine in a process of its own.

    Compiling is measured where there is a `model`.

    Raises:
        DlcError: one of the processes failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.dlc"
        package.save(path)
        own = memory.running("dlc", path, inputs, threads)
    options = package.manifest.get("options")
    compiled = None if model is None or options is None else memory.compiling(model, options)
    peaks = [memory.running(name, model, inputs, threads) for name in against if model is not None]
    first = replace(timings[0], peak=own, compile_peak=compiled)
    return [first, *(replace(t, peak=p) for t, p in zip(timings[1:], peaks, strict=True))]


def as_json(timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """For ``--json``; times in microseconds."""
    return [{key: value for key, value in vars(timing).items() if value is not None} for timing in timings]
