"""The operators of the IR; importing this package fills the table `OPS`. Imports no TVM."""

from dlc.ir.ops import (
    conv,
    cumulate,
    extents,
    host,
    matmul,
    pool,
    positions,
    quantization,
    relax_ops,
    resize,
    scatter_rows,
    top_indices,
)
from dlc.ir.ops.registry import OPS, OpSpec

__all__ = [
    "OPS",
    "OpSpec",
    "conv",
    "cumulate",
    "extents",
    "host",
    "matmul",
    "pool",
    "positions",
    "quantization",
    "relax_ops",
    "resize",
    "scatter_rows",
    "top_indices",
]
