"""Dense contractions on vector units: matmul, GEMV, batched matmul and convolution from one generator.

The problem is described in `contract_problem`, priced in `contract_cost` and emitted by `contract_emit`.
"""

from dlc.targets.cpu.kernels.contract_cost import candidates, choose, predicted_seconds
from dlc.targets.cpu.kernels.contract_emit import Store, emit
from dlc.targets.cpu.kernels.contract_problem import (
    Axis,
    Contraction,
    Run,
    Schedule,
    conv_contraction,
    conv_weight,
    matmul_contraction,
    pack,
    packed_size,
)

__all__ = [
    "Axis",
    "Contraction",
    "Run",
    "Schedule",
    "Store",
    "candidates",
    "choose",
    "conv_contraction",
    "conv_weight",
    "emit",
    "matmul_contraction",
    "pack",
    "packed_size",
    "predicted_seconds",
]
