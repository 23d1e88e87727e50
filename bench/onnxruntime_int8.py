"""onnxruntime's own int8 forms of a model, made by its quantiser with its best settings: the peer of our int8."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def quantized_forms(model: Path, calibration: np.ndarray, folder: Path) -> list[Path]:
    """Quantise statically (uint8 activations, int8 weights per channel) as QDQ and as QOperator; returns both files.

    Args:
        model: an ONNX file with one input.
        calibration: samples, each of the input's shape: (samples, batch, ...).
        folder: where the files go.
    """
    import onnx
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().setLevel(logging.ERROR)
    name = onnx.load(model).graph.input[0].name

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples: Iterator[np.ndarray] = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(self.samples, None)
            return None if sample is None else {name: sample}

    prepared = folder / f"{Path(model).stem}-prepared.onnx"
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    made = []
    for form in (q.QuantFormat.QDQ, q.QuantFormat.QOperator):
        path = folder / f"{Path(model).stem}-ort-{form.name.lower()}.onnx"
        q.quantize_static(
            str(prepared), str(path), Reader(), quant_format=form, per_channel=True,
            activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
        )  # fmt: skip
        made.append(path)
    return made
