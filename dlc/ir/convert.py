"""Between Relax and the plain graph view, in both directions.

`view(module)` reads a Relax function as a `Graph`; `FunctionBuilder.emit(op, inputs, attrs)` writes one node. The two
are inverse, so a pass reads nodes and emits nodes. How Relax spells things is in `spelling`.
"""

from dlc.ir.reader import inner_functions, view
from dlc.ir.spelling import constant_array, shape_of, value_of
from dlc.ir.writer import PACKED, FunctionBuilder, IrTypeError, UndecidedTypeError, infer_type

__all__ = [
    "PACKED",
    "FunctionBuilder",
    "IrTypeError",
    "UndecidedTypeError",
    "constant_array",
    "infer_type",
    "inner_functions",
    "shape_of",
    "value_of",
    "view",
]
