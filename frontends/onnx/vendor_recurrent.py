"""DynamicQuantizeLSTM of the domain com.microsoft: an LSTM whose products are of integers.

ONNX Runtime quantises the whole input by its range, then the last outputs of all rows of a batch by theirs in every
step (uint8, as DynamicQuantizeLinear does); the weights are codes of one zero point, with a scale a direction or a
column. Sums and activation functions are float. So a row's result depends, by the rounding of the codes, on the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dlc.frontends.onnx.context import Context
from dlc.frontends.onnx.recurrent import LSTM, LSTM_FUNCTIONS, Weights, at, biases, layer
from dlc.frontends.onnx.registry import converter
from dlc.frontends.onnx.tensor import ConversionError, Tensor
from dlc.frontends.onnx.vendor_fused import DOMAIN
from dlc.frontends.onnx.vendor_quantised import dynamic_quantize_matmul


@dataclass(frozen=True)
class _Codes(Weights):
    """Weights that are codes: a scale (one, or one a column) and a zero point for each of the two matrices."""

    input_scale: Tensor
    input_zero: Tensor
    recurrence_scale: Tensor
    recurrence_zero: Tensor
    row_wise: ClassVar[bool] = False

    def project(self, c: Context, x: Tensor) -> Tensor:
        """The product of all inputs, quantised as one."""
        return dynamic_quantize_matmul(c, x, self.input, self.input_scale, self.input_zero)

    def recur(self, c: Context, h: Tensor) -> Tensor:
        """The recurrent product of outputs quantised as one."""
        return dynamic_quantize_matmul(c, h, self.recurrence, self.recurrence_scale, self.recurrence_zero)


def _zero_point(c: Context, zero: Tensor, direction: int) -> Tensor:
    """The one zero point of a direction's weights."""
    own = at(c, zero, direction)
    if own.value is not None and np.any(own.value != own.value.reshape(-1)[0]):
        raise ConversionError("zero points that differ from column to column")
    return c.reshape(own if own.rank == 0 else c.slice(own, 0, 0, 1), ())


@converter("DynamicQuantizeLSTM", domain=DOMAIN)
def dynamic_quantize_lstm(
    c: Context, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, lengths: Tensor | None, h: Tensor | None,
    cell: Tensor | None, peepholes: Tensor | None, w_scale: Tensor, w_zero: Tensor, r_scale: Tensor, r_zero: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Weights (D, I, 4 * H) and (D, H, 4 * H) of codes; gates in the order input, output, forget, cell."""
    if w.shape[-1] != LSTM.gates * r.shape[1]:
        raise ConversionError(f"weights of {w.shape[-1]} columns, expected {LSTM.gates} gates of {r.shape[1]}")
    parameters = []
    for number in range(int(w.shape[0])):
        both, _ = biases(c, None if b is None else at(c, b, number), LSTM)
        # The bias comes behind both products, in ONNX Runtime's order: one rounding more or less changes codes.
        own = _Codes(
            at(c, w, number), at(c, r, number), None, both, None if peepholes is None else at(c, peepholes, number), [],
            at(c, w_scale, number), _zero_point(c, w_zero, number), at(c, r_scale, number),
            _zero_point(c, r_zero, number),
        )  # fmt: skip
        parameters.append(own)
    return layer(c, LSTM, LSTM_FUNCTIONS, x, parameters, lengths, [h, cell])
