"""The operators of the IR; importing this package fills the table `OPS`. Imports no TVM."""

from dlc.ir.ops import conv, matmul, pool, quantization, relax_ops
from dlc.ir.ops.registry import OPS, OpSpec

__all__ = ["OPS", "OpSpec", "conv", "matmul", "pool", "quantization", "relax_ops"]
