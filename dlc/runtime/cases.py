"""Runs a package that has code for ranges of sizes: that of the sizes that come, else the general code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.package import Package
from dlc.runtime.session import Session

GENERAL = "general"

Case = tuple[Mapping[str, Sequence[int]], Session]  # the least and the largest size of each symbol


class CasesExecutable:
    """Sessions by ranges of sizes, and the one that takes any others."""

    def __init__(self, cases: Sequence[Case], general: Session) -> None:
        self.cases, self.general = list(cases), general

    def compute(self, inputs: list[np.ndarray], sizes: Mapping[str, int]) -> list[Any]:
        """See `dlc.targets.base.Executable`."""
        session = self._session(sizes)
        return list(session.run(dict(zip((i.name for i in session.inputs), inputs, strict=True))).values())

    def _session(self, sizes: Mapping[str, int]) -> Session:
        for ranges, session in self.cases:
            if all(least <= sizes[name] <= largest for name, (least, largest) in ranges.items()):
                return session
        return self.general

    def clone(self) -> CasesExecutable:
        """Another one, of clones of the sessions."""
        return CasesExecutable([(ranges, session.clone()) for ranges, session in self.cases], self.general.clone())


def load(package: Package, threads: int) -> CasesExecutable:
    """Load the code of every range; DlcError where it cannot be loaded on this machine."""
    table = package.manifest["build"]["cases"]
    cases = [(ranges, Session(package.nested(f"case{i}"), threads)) for i, ranges in enumerate(table)]
    return CasesExecutable(cases, Session(package.nested(GENERAL), threads))
