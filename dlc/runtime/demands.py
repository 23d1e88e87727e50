"""What a model demands of the sizes of its symbols, beyond the shapes of its inputs. Imports no TVM.

Kernels take it on trust, so whoever binds sizes holds them to it first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dlc.errors import DlcError


@dataclass(frozen=True)
class Demands:
    """What has to hold of the symbols' sizes.

    Attributes:
        limits: the largest sizes, by the symbols' names; others have none.
        least: the least sizes, by the symbols' names; others have none.
        equal: pairs of extents that have to be equal, as ``a == b``, each with what is wrong where they are not.
    """

    limits: Mapping[str, int] = field(default_factory=dict)
    least: Mapping[str, int] = field(default_factory=dict)
    equal: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Demands:
        """Those of a manifest, which need not say any."""
        return cls(*(record.get(key, {}) for key in ("limits", "least", "equal")))

    @classmethod
    def of_graph(cls, attrs: Mapping[str, Any]) -> Demands:
        """Those of a graph's attributes."""
        return cls.of({key.removeprefix("dlc."): value for key, value in attrs.items()})

    def as_json(self) -> dict[str, dict[str, Any]]:
        """What `of` reads."""
        return {"limits": dict(self.limits), "least": dict(self.least), "equal": dict(self.equal)}

    def lines(self) -> list[str]:
        """What is demanded, for people."""
        bounds = ((self.limits, "most"), (self.least, "least"))
        found = [f"{name}: at {word} {bound}" for each, word in bounds for name, bound in sorted(each.items())]
        return [*found, *self.equal]

    def hold(self, sizes: Mapping[str, int]) -> bool:
        """Whether they are met."""
        try:
            self.check(sizes, dict.fromkeys(sizes, ""))
        except DlcError:
            return False
        return True

    def check(self, sizes: Mapping[str, int], source: Mapping[str, str]) -> None:
        """Hold the symbols to it; `source` names the input that each size comes from.

        Raises:
            DlcError: a size is too large or too small, or two extents differ.
        """
        for bounds, word, sign in ((self.limits, "most", 1), (self.least, "least", -1)):
            for name, bound in bounds.items():
                if name in sizes and sign * sizes[name] > sign * bound:
                    text = f"dimension '{name}' is {sizes[name]}, the model takes {bound} at {word}"
                    raise DlcError(f"input '{source[name]}': {text}")
        if not self.equal:
            return
        from dlc.ir.interpret import evaluate_dim  # only models with symbolic extents need the table of operators

        for pair, wrong in self.equal.items():
            first, second = (evaluate_dim(dim, sizes) for dim in pair.split(" == "))
            if first != second:
                raise DlcError(f"{wrong}: {first} and {second}")
