"""Runs a package that has code for some sizes: the first whose demands the sizes meet, else the general code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.package import Package
from dlc.runtime.session import Session

GENERAL = "general"

_REMEMBERED = 256  # combinations of sizes


class CasesExecutable:
    """Sessions for some sizes each, and the one that takes any others."""

    def __init__(self, cases: Sequence[Session], general: Session) -> None:
        self.cases, self.general = list(cases), general
        self._chosen: dict[tuple[int, ...], Session] = {}

    def compute(self, inputs: list[np.ndarray], sizes: Mapping[str, int]) -> list[Any]:
        """See `dlc.targets.base.Executable`."""
        session = self._chosen.get(tuple(sizes.values())) or self._choose(sizes)
        return list(session.run(dict(zip((i.name for i in session.inputs), inputs, strict=True))).values())

    def _choose(self, sizes: Mapping[str, int]) -> Session:
        session = next((case for case in self.cases if case.demands.hold(sizes)), self.general)
        if len(self._chosen) >= _REMEMBERED:
            self._chosen = {}
        self._chosen[tuple(sizes.values())] = session
        return session

    def clone(self) -> CasesExecutable:
        """Another one, of clones of the sessions."""
        return CasesExecutable([session.clone() for session in self.cases], self.general.clone())


def load(package: Package, threads: int) -> CasesExecutable:
    """Load the code of every case; DlcError where it cannot be loaded on this machine."""
    cases = [Session(package.nested(name), threads) for name in package.manifest["build"]["cases"]]
    return CasesExecutable(cases, Session(package.nested(GENERAL), threads))
