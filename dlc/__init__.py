"""dlc: a hardware-aware deep-learning compiler. ONNX in, one package out, and a session that runs it.

    package = dlc.compile("model.onnx", target="cpu", quantize="int8", calibration=data)
    package.save("model.dlc")
    session = dlc.load("model.dlc")
    outputs = session.run({"x": x})

Importing this module and loading a package import neither TVM's compiler nor onnx.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from dlc.errors import DlcError

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from dlc.package import Package
    from dlc.runtime.session import Session

    Model: TypeAlias = str | os.PathLike[str] | onnx.ModelProto
    Arrays: TypeAlias = Mapping[str, np.ndarray]
    Calibration: TypeAlias = str | os.PathLike[str] | Arrays | Iterable[Arrays]

__all__ = ["DlcError", "__version__", "compile", "load", "quantize"]

__version__ = "0.1.0"


def compile(
    model: Model,
    target: str = "cpu",
    quantize: Literal["none", "bf16", "int8", "int8-dynamic", "int4"] = "none",
    calibration: Calibration | None = None,
    arithmetic: Literal["float", "fixed", "shift"] = "float",
    shapes: Mapping[str, Sequence[int | str] | Sequence[Sequence[int]]] | None = None,
    *,
    calibration_method: Literal["minmax", "percentile", "mse"] = "minmax",
    stream: bool = False,
    max_length: int | None = None,
    cascade: Model | None = None,
    threshold: float | None = None,
    agreement: float | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    cache: bool = True,
) -> Package:
    """Compile a model, or find its package in the compile cache (`dlc.cache`).

    Args:
        model: an .onnx file, ``zoo:NAME``, or an ``onnx.ModelProto``.
        target: ``cpu`` (this machine), ``cpu:avx2``, ``cpu:portable`` (several instruction sets in one package),
            ``reference``, ...; `dlc targets` lists them.
        quantize: ``int8`` makes integer operators; a model without Q/DQ nodes then needs `calibration`.
            ``int8-dynamic`` makes integer matrix products with a scale a row at run time, without calibration.
            ``bf16`` rounds weights to bfloat16, half the bytes, and where the processor multiplies bfloat16 by bfloat16
            the activations that meet them; sums and all else stay float32.
        calibration: representative inputs: an .npz or a folder of them, a dict of arrays with a leading sample axis,
            an iterable of dicts (one sample each), ``random`` or ``random:SEED``, or ``zoo:NAME``. A model of the zoo
            brings its own.
        arithmetic: how integer results are rescaled, see docs/arithmetic.md.
        shapes: extents or symbol names of inputs, in place of the model's. An input with a default value is a constant
            unless a shape is given for it. A list of several shapes makes code for each, and general code for others.
        calibration_method: how ranges are chosen from the samples.
        stream: add the form that takes a sequence in parts (`Session.stream`); the model must be causal.
        max_length: how many steps a sequence in parts may have. Models with attention or positions need it, unless they
            say themselves how many they take; their caches have so many rows.
        cascade: a larger model of the same inputs and outputs, which is asked where `model` is not sure: where the
            largest probability in its first output is below `threshold`.
        threshold, agreement: of a cascade, one of them. With `agreement` the threshold is the least at which, of the
            calibration samples, that share is answered as the larger model answers.
        progress: called with (stage, done, total).
        cache: look for the package in the compile cache, and keep it there.

    Returns:
        The package; ``save`` writes it, `load` runs it.

    Raises:
        DlcError: the model, the options or the calibration data are wrong; names the file, node and operator.
    """
    from dlc.cascade import Threshold, compile_cascade
    from dlc.compiler import compile_model
    from dlc.options import Options
    from dlc.variants import choices, compile_variants

    if calibration is None and quantize == "int8" and isinstance(model, str) and model.startswith("zoo:"):
        calibration = model
    if isinstance(calibration, Iterator) and (cascade is not None or len(choices(shapes or {})) > 1):
        calibration = list(calibration)  # it is read once for each model in the package

    def one(each: Model) -> Package:
        def shaped(given: Mapping[str, Sequence[int | str]]) -> Package:
            options = Options(target, quantize, arithmetic, calibration_method, dict(given), stream, max_length)
            return compile_model(each, options, calibration, progress, cache)

        return compile_variants(shapes or {}, shaped)

    if cascade is not None:
        return compile_cascade(model, cascade, Threshold(threshold, agreement), calibration, one)
    if threshold is not None or agreement is not None:
        raise DlcError("a threshold or an agreement is of a cascade: name the larger model")
    return one(model)


def load(package: Package | str | os.PathLike[str], threads: int = 1) -> Session:
    """A session that runs a package.

    Args:
        package: a .dlc file, or what `compile` returned. Of several levels in it the best of this machine is loaded, or
            the one that the environment variable ``DLC_LEVEL`` names.
        threads: how many threads one ``run`` may use.

    Raises:
        DlcError: the package is damaged, of another format, or needs what this machine lacks.
    """
    from dlc.runtime.session import Session

    return Session(package, threads)


def quantize(
    model: Model,
    calibration: Calibration,
    *,
    calibration_method: Literal["minmax", "percentile", "mse"] = "minmax",
) -> onnx.ModelProto:
    """The simplified model with Quantize/DequantizeLinear nodes, for any ONNX runtime.

    Args:
        model, calibration, calibration_method: as for `compile`.

    Raises:
        DlcError: the model or the calibration data are wrong.
    """
    from dlc.compiler import quantize_model
    from dlc.options import Options

    return quantize_model(model, Options(quantize="int8", calibration_method=calibration_method), calibration)
