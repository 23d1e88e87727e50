"""Join what is computed of one code, in several steps, into one table.

`form_integers` makes a table of an expression between two quantisations. A model that quantises behind every operator
(GELU as four of them: the value is read at both ends) is a chain of tables, products and requantisations of the same
code, which is a table too: of 256 entries, computed here as the interpreter would, so that no code changes.

Only where a table is among the steps: then there are no more lookups than before, and fewer of everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlc.ir.convert import view
from dlc.ir.graph import Node
from dlc.ir.interpret import apply
from dlc.ir.ops import OPS
from dlc.ir.rewrite import Rewriter, rewrite
from dlc.passes.quantize.calibrate import is_quantized
from dlc.passes.simplify.match import same_shape
from dlc.pipeline import Context, Pass

_CODES = 256


@dataclass(frozen=True)
class _Function:
    """A value whose every element is a function of the same element of `root`, which is uint8.

    Attributes:
        values: what it is for each code.
        steps: nodes from the root on, shared ones counted again.
        tables: whether one of them is a table.
    """

    root: str
    values: np.ndarray
    steps: int = 0
    tables: bool = False


class _Joiner:
    """The handler's state: the functions, and the numbers, found so far by the name of the value."""

    def __init__(self) -> None:
        self.found: dict[str, _Function] = {}
        self.numbers: dict[str, np.ndarray] = {}  # quantised constants that are not folded yet

    def __call__(self, rw: Rewriter, node: Node) -> Any:
        """A table in place of the node."""
        function = self._function(rw, node)
        if function is None:
            return None
        self.found[node.output.name] = function
        if node.output.dtype != "uint8" or not function.tables or function.steps < 2:
            return None
        return rw.emit("dlc.table", [rw.new(function.root), rw.const(function.values)], {}, node.origin)

    def _function(self, rw: Rewriter, node: Node) -> _Function | None:
        if node.op == "call" or OPS[node.op].kind != "elementwise":
            return None
        found = [self._operand(rw, node, position) for position in range(len(node.inputs))]
        operands = [each for each in found if each is not None]
        functions = [each for each in operands if isinstance(each, _Function)]
        if len(operands) < len(found) or len({function.root for function in functions}) > 1:
            return None
        values = apply(node, [each.values if isinstance(each, _Function) else each for each in operands], {})
        if not functions:
            self.numbers[node.output.name] = values
            return None
        if values.size != _CODES or not same_shape(rw.value(functions[0].root).shape, node.output.shape):
            return None
        steps = 1 + sum(function.steps for function in functions)
        tables = node.op == "dlc.table" or any(function.tables for function in functions)
        return _Function(functions[0].root, values.reshape(_CODES), steps, tables)

    def _operand(self, rw: Rewriter, node: Node, position: int) -> _Function | np.ndarray | None:
        """An operand as a number (or the table of a lookup), or as a function of codes: of its own if it holds some."""
        name = node.inputs[position]
        constant = rw.constant(name) if name not in self.numbers else self.numbers[name]
        if constant is not None:
            table = node.op == "dlc.table" and position == 1
            # Parameters of a code keep their shape, which `axis` speaks of; an operand of any rank is a number.
            number = constant if node.op.startswith("dlc.") else constant.reshape(-1)[0]
            return number if constant.size == 1 or table else None
        if name in self.found:
            return self.found[name]
        return _Function(name, np.arange(_CODES, dtype=np.uint8)) if rw.value(name).dtype == "uint8" else None


def run(module: Any, context: Context) -> Any:
    """See the module's docstring; a module of floats alone is not written anew."""
    return rewrite(module, _Joiner()) if is_quantized(view(module)) else module


PASS = Pass("join_tables", run)
