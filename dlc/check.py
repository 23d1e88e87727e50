"""Holding a package to another implementation of ONNX: onnxruntime, or onnx.reference where it is not installed.

The oracle never sees our importer: it reads the same .onnx file by itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.explain import read
from dlc.oracle import Oracle
from dlc.runtime.session import Session, TensorInfo, bind_symbols

RTOL, ATOL = 1e-3, 1e-4


@dataclass(frozen=True)
class Tolerance:
    """What counts as equal: elements within ``atol + rtol |expected|`` (integers: within ``atol``), or, when `snr` is
    given, a tensor whose signal-to-noise ratio in decibels is at least that.
    """

    rtol: float = RTOL
    atol: float = ATOL
    snr: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One tensor beside the oracle's.

    Attributes:
        name: the ONNX value.
        agrees: whether it is within the tolerance.
        reason: what is wrong, empty when it agrees.
        max_abs, max_rel: the largest differences; None where the tensors cannot be compared.
        snr: 10 log10 of signal energy over error energy; None stands for infinite (equal tensors).
        node, kernel: of the kernel that made the value, when nodes are compared.
    """

    name: str
    agrees: bool
    reason: str = ""
    max_abs: float | None = None
    max_rel: float | None = None
    snr: float | None = None
    node: str = ""
    kernel: str = ""


@dataclass
class Report:
    """What `check` found.

    Attributes:
        oracle: which implementation the package was held to, with its version.
        outputs: a comparison of each output, for each set of inputs.
        nodes: a comparison of each kernel's value, in execution order, when asked for.
        skipped: values that the oracle has not, or has in another form.
    """

    oracle: str
    outputs: list[Comparison]
    nodes: list[Comparison] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def first_difference(self) -> Comparison | None:
        """The first kernel whose value differs."""
        return next((c for c in self.nodes if not c.agrees), None)

    @property
    def agrees(self) -> bool:
        """Whether every output, and every node that was compared, agrees."""
        return all(c.agrees for c in (*self.outputs, *self.nodes))

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        first = self.first_difference
        return {
            "oracle": self.oracle,
            "agrees": self.agrees,
            "outputs": [asdict(c) for c in self.outputs],
            "nodes": [asdict(c) for c in self.nodes],
            "first_difference": asdict(first) if first else None,
            "skipped": self.skipped,
        }


# --- comparing -------------------------------------------------------------------------------------------------------


def _snr(expected: np.ndarray, error: np.ndarray) -> float:
    """In decibels; infinite for no error, and minus infinity where an error is not finite."""
    noise, signal = float(np.sum(error * error)), float(np.sum(expected * expected))
    if noise == 0:
        return math.inf
    if not math.isfinite(noise) or signal == 0:
        return -math.inf
    return 10 * math.log10(signal / noise)


def compare(
    name: str, actual: np.ndarray, expected: np.ndarray, tolerance: Tolerance, *, scale: bool = False
) -> Comparison:
    """Compare a tensor with the oracle's.

    Infinities and NaN must be in the same places. With `scale` the relative tolerance counts from the tensor's largest
    magnitude: inside a network, small elements inherit the rounding of large ones.
    """
    if actual.shape != expected.shape:
        return Comparison(name, False, f"shape {list(actual.shape)}, expected {list(expected.shape)}")
    if actual.dtype != expected.dtype and not scale:
        return Comparison(name, False, f"dtype {actual.dtype}, expected {expected.dtype}")
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    with np.errstate(all="ignore"):
        same = (a == e) | (np.isnan(a) & np.isnan(e))
        error = np.where(same, 0.0, np.abs(a - e))
        error = np.where(np.isnan(error), np.inf, error)
        finite = np.where(np.isfinite(e), np.abs(e), 0.0)
    largest = float(finite.max(initial=0.0))
    relative = tolerance.rtol if expected.dtype.kind not in "iub" or scale else 0.0
    bound = tolerance.atol + relative * (largest if scale else finite)
    wrong = int(np.count_nonzero(error > bound))
    max_abs = float(error.max(initial=0.0))
    with np.errstate(all="ignore"):
        max_rel = float(np.where(error > 0, error / finite, 0.0).max(initial=0.0))
    snr = _snr(finite, error)
    reason = ""
    if tolerance.snr is not None:
        if snr < tolerance.snr:
            reason = f"signal-to-noise ratio {snr:.1f} dB, at least {tolerance.snr:g} wanted"
    elif wrong:
        reason = f"{wrong} of {a.size} elements differ, by up to {max_abs:.3g}"
    return Comparison(name, not reason, reason, _json(max_abs), _json(max_rel), _json(snr))


def _json(number: float) -> float | None:
    return number if math.isfinite(number) else None


# --- inputs ----------------------------------------------------------------------------------------------------------


def input_shapes(infos: Sequence[TensorInfo], given: Mapping[str, Sequence[int | str]]) -> dict[str, tuple[int, ...]]:
    """Extents of every input: those given, and 1 for symbols that nothing fixes.

    Raises:
        DlcError: a given shape is of no input, or does not fit.
    """
    from dlc.ir.interpret import evaluate_dim

    unknown = sorted(set(given) - {info.name for info in infos})
    if unknown:
        raise DlcError(
            f"there is no input '{unknown[0]}' to give a shape to; there is {', '.join(i.name for i in infos)}"
        )
    symbolic = [name for name, shape in given.items() if not all(isinstance(d, int) for d in shape)]
    if symbolic:
        raise DlcError(f"the shape of input '{symbolic[0]}' must be numbers here")
    fixed = [info for info in infos if info.name in given]
    sizes = bind_symbols(fixed, [tuple(int(d) for d in given[info.name]) for info in fixed])
    for info in infos:
        for dim in info.shape:
            for symbol in re.findall(r"[A-Za-z_]\w*", str(dim)):
                sizes.setdefault(symbol, 1)
    return {info.name: tuple(evaluate_dim(d, sizes) for d in info.shape) for info in infos}


def random_inputs(
    infos: Sequence[TensorInfo], shapes: Mapping[str, Sequence[int | str]], seed: int = 0
) -> dict[str, np.ndarray]:
    """Inputs of a seed: floats standard normal, bytes over their range, other integers 0 or 1 (they may be indices)."""
    generator = np.random.default_rng(seed)
    result = {}
    for name, shape in input_shapes(infos, shapes).items():
        dtype = np.dtype(next(info.dtype for info in infos if info.name == name))
        array: Any
        if dtype in (np.dtype(np.uint8), np.dtype(np.int8)):
            limits = np.iinfo(dtype)
            array = generator.integers(limits.min, limits.max + 1, shape)
        elif dtype.kind in "iub":
            array = generator.integers(0, 2, shape)
        else:
            array = generator.standard_normal(shape)
        result[name] = np.asarray(array).astype(dtype)
    return result


# --- the check -------------------------------------------------------------------------------------------------------


def check(
    session: Session,
    oracle: Oracle,
    inputs: Sequence[Mapping[str, np.ndarray]],
    tolerance: Tolerance,
    per_node: bool = False,
) -> Report:
    """Run the package and the oracle on each set of inputs and compare; with `per_node`, kernels too (first set only).

    Raises:
        DlcError: inputs do not fit, or the oracle cannot run the model.
    """
    report = Report(oracle.name, [])
    for arrays in inputs:
        actual = session.run(arrays)
        expected = oracle.run(arrays)
        for name, array in actual.items():
            if name not in expected:
                raise DlcError(f"the model has no output '{name}': is it what the package was compiled from?")
            report.outputs.append(compare(name, array, expected[name], tolerance))
    if per_node:
        _check_nodes(session, oracle, inputs[0], tolerance, report)
    return report


def _trace(session: Session, arrays: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    trace = getattr(session.executable, "trace", None)
    if trace is None:
        raise DlcError(f"target '{session.package.manifest.get('target')}' cannot show the values of single kernels")
    ordered = [np.ascontiguousarray(arrays[info.name]).reshape(np.shape(arrays[info.name])) for info in session.inputs]
    yield from trace(ordered, bind_symbols(session.inputs, [a.shape for a in ordered]))


def _check_nodes(
    session: Session, oracle: Oracle, arrays: Mapping[str, np.ndarray], tolerance: Tolerance, report: Report
) -> None:
    values = oracle.values(arrays, [row["value"] for row in read(session.package).nodes if row.get("value")])
    for row, array in _trace(session, arrays):
        name = str(row.get("value", ""))
        expected = values.get(name)
        # Codes whose scale is not known cannot be held to the model's real values.
        comparable = expected is not None and (expected.dtype.kind in "iu") == (array.dtype.kind in "iu")
        if expected is None or not comparable or expected.shape != array.shape:
            report.skipped.append(name)
            continue
        found = compare(name, array, expected, tolerance, scale=True)
        labels = {"node": str(row.get("node", "")), "kernel": str(row.get("kernel", ""))}
        report.nodes.append(Comparison(**{**asdict(found), **labels}))
