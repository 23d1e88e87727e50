"""The scores of the attentions of one graph: which of them masks have hidden, from the steps' own positions on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from dlc.ir.graph import Node
from dlc.passes.specialize.causal import (
    LOW,
    OTHER,
    ahead,
    computed,
    constant_state,
    is_low,
    is_shown,
    planes,
    sees,
    shown,
)
from dlc.passes.specialize.positions import NotLocalError, Positions


class Scores:
    """What is known of scores, by the name of the value.

    Attributes:
        placed: (node, operand) -> the operand's axes of (steps, keys), -1 for none, of what depends on positions alone.
        behind: what the elements of later positions have in common, see `causal`.
        shown: the elements that no mask has hidden, (1, steps, keys).
    """

    def __init__(self, positions: Positions, constants: Mapping[str, np.ndarray]) -> None:
        self.positions, self.constants = positions, constants
        self.placed: dict[tuple[str, str], tuple[int, int]] = {}
        self.behind: dict[str, str] = {}
        self.shown: dict[str, np.ndarray] = {}
        self._tables: dict[bytes, np.ndarray] = {}

    def place(self, node: Node, name: str, axes: tuple[int, int]) -> None:
        """Note an operand of positions, of which `axes` run over steps and keys; NotLocalError where it is none."""
        self.positions.table(name, node)
        self.placed[node.output.name, name] = axes

    def compute(self, node: Node) -> None:
        """Follow an elementwise operator."""
        self.behind[node.output.name] = computed(node.op, [self._behind(node, name) for name in node.inputs])
        masks, op = [self._shown(node, name) for name in node.inputs], node.op
        if op == "relax.where" and not self._is_known(node, node.inputs[0]):
            masks, op = masks[1:], ""  # one or the other, as the data say
        found = shown(op, masks)
        same = hashlib.sha256(found.tobytes()).digest()  # the same in each layer
        self.shown[node.output.name] = self._tables.setdefault(same, found)

    def keep(self, node: Node) -> None:
        """Follow an operator that moves scores, or one of which nothing else is known."""
        name = node.inputs[0]
        if name in self.shown:
            self.behind.setdefault(node.output.name, self.behind[name])
            self.shown.setdefault(node.output.name, self.shown[name])

    def hold(self, node: Node, wanted: str) -> None:
        """Hold scores to what must be known of later positions where a node sums over all of them.

        Raises:
            NotLocalError: it is not known.
        """
        name = node.inputs[0]
        behind = self.behind.get(name)
        if behind != wanted and not (wanted == LOW and behind is not None and is_low(behind)):
            raise NotLocalError(node, "it is not causal: it reads scores of later steps that no mask is known to hide")
        longest = self.positions.longest
        if wanted == LOW and longest is not None and not sees(self.shown[name], longest):
            text = "a mask hides all positions from a step, so that later ones count as much as earlier ones"
            raise NotLocalError(node, f"it is not causal: {text}")

    def _is_known(self, node: Node, name: str) -> bool:
        return name in self.constants or (node.output.name, name) in self.placed

    def _behind(self, node: Node, name: str) -> str:
        """What later elements of an operand have in common."""
        if name in self.constants:
            return constant_state(self.constants[name])
        if (node.output.name, name) in self.placed:
            return constant_state(ahead(self.positions.table(name, node), *self.placed[node.output.name, name]))
        return self.behind.get(name, OTHER)

    def _shown(self, node: Node, name: str) -> np.ndarray:
        """Which elements of an operand are not hidden, (others, steps, keys)."""
        if name in self.constants:
            return is_shown(self.constants[name]).reshape(-1, 1, 1)
        if (node.output.name, name) in self.placed:
            return planes(is_shown(self.positions.table(name, node)), *self.placed[node.output.name, name])
        return self.shown.get(name, np.ones((1, 1, 1), np.bool_))
