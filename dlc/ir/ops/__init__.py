"""The operators of the IR; importing this package fills the table `OPS`. Imports no TVM."""

from dlc.ir.ops import (
    bitcast,
    conv,
    cumulate,
    determinant,
    extents,
    host,
    matmul,
    pool,
    positions,
    quantization,
    random_bits,
    relax_ops,
    resize,
    sample,
    scatter_rows,
    top_indices,
)
from dlc.ir.ops.registry import OPS, OpSpec

__all__ = [
    "OPS",
    "OpSpec",
    "bitcast",
    "conv",
    "cumulate",
    "determinant",
    "extents",
    "host",
    "matmul",
    "pool",
    "positions",
    "quantization",
    "random_bits",
    "relax_ops",
    "resize",
    "sample",
    "scatter_rows",
    "top_indices",
]
