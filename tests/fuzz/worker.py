"""The process that does the work: it may crash or hang, and the one that watches it (`tests.fuzz.watch`) sees that.

It prints one JSON record a line: what it begins, and what it found. A case is in its folder before it is tried.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fuzz import differential, importer, store
from tests.fuzz.generate import Case, generate, resized
from tests.fuzz.mutate import mutant
from tests.fuzz.shrink import shrink
from tests.guard import LEVELS, guarded

_MEMORY = 12 << 30  # bytes of address space; a model that asks for more is a finding


def _say(**record: Any) -> None:
    print(json.dumps(record), flush=True)


def _check(case: Case, seed: int, targets: Sequence[str]) -> tuple[differential.Finding | None, str]:
    other = resized(case, seed)
    return differential.check(case, [other] if other is not None else [], targets)


def graph(seed: int, folder: Path, targets: Sequence[str] = differential.TARGETS) -> None:
    """One random graph: compiled, run, compared; made smaller where it differs."""
    case = generate(seed)
    path = store.save(case, folder, "current")
    _say(begins=seed, path=str(path))
    found, oracle = _check(case, seed, targets)

    def fails(candidate: Case) -> bool:
        _say(shrinking=seed)
        again, _ = _check(candidate, seed, targets)
        return again is not None and found is not None and again.kind == found.kind

    if found is not None:
        case = shrink(case, fails)
        path = store.save(case, folder, "small")
        found = _check(case, seed, targets)[0] or found
    _say(ends=seed, kind=found and found.kind, text=found and found.text, path=str(path), oracle=oracle)


def guard(seed: int, folder: Path) -> None:
    """One random graph for an instruction set that the seed chooses, every tensor in guarded memory."""
    with guarded():
        graph(seed, folder, [f"cpu:{LEVELS[seed % len(LEVELS)]}"])


def model(seed: int, folder: Path) -> None:
    """One damaged model."""
    data = mutant(seed)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "current.onnx"
    path.write_bytes(data)
    _say(begins=seed, path=str(path))
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    found = importer.check(data, scratch, seed)
    _say(ends=seed, kind=found and found.kind, text=found and found.text, path=str(path), oracle="")


KINDS = {"graph": graph, "model": model, "guard": guard}


def main(kind: str, first: str, count: str, folder: str) -> None:
    """Work through seeds."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    for seed in range(int(first), int(first) + int(count)):
        KINDS[kind](seed, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
