"""Code for several shapes in one package: each shape compiled for itself, and general code for all others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dlc.errors import DlcError
from dlc.join import join
from dlc.package import Package
from dlc.runtime.variants import GENERAL

RUNTIME = "dlc.runtime.variants"

Shape = Sequence[int | str]
Several = Mapping[str, Shape | Sequence[Shape]]

_log = logging.getLogger(__name__)


def choices(shapes: Several) -> list[dict[str, Shape]]:
    """The shapes of each variant: one where no input has several.

    Raises:
        DlcError: two inputs have different numbers of shapes, or a variant is not of numbers.
    """
    several: dict[str, Any] = {n: given for n, given in shapes.items() if given and not isinstance(given[0], int | str)}
    one: dict[str, Any] = {name: given for name, given in shapes.items() if name not in several}
    if not several:
        return [one]
    counts = {name: len(given) for name, given in several.items()}
    if len(set(counts.values())) > 1:
        raise DlcError(f"every input with several shapes needs as many of them: {counts}")
    for name, given in several.items():
        for shape in given:
            if not isinstance(shape, Sequence) or not all(isinstance(d, int) for d in shape):
                raise DlcError(f"input '{name}': a variant's shape must be numbers, got {shape}")
    count = next(iter(counts.values()))
    return [{**one, **{name: several[name][i] for name in several}} for i in range(count)]


def general_shapes(variants: Sequence[Mapping[str, Shape]]) -> dict[str, Shape]:
    """The shapes of the general code: an extent in which variants differ is a symbol, the same for the same numbers."""
    symbols: dict[tuple[Any, ...], str] = {}
    result: dict[str, Shape] = {}
    for name in variants[0]:
        given = [v[name] for v in variants]
        if len({len(shape) for shape in given}) > 1:
            raise DlcError(f"input '{name}': its variants are of different ranks: {[list(s) for s in given]}")
        columns = list(zip(*given, strict=True))
        result[name] = tuple(
            column[0] if len(set(column)) == 1 else symbols.setdefault(column, f"size{len(symbols)}")
            for column in columns
        )
    return result


def compile_variants(shapes: Several, compile_one: Callable[[Mapping[str, Shape]], Package]) -> Package:
    """One package of all variants; `compile_one` compiles the model for given shapes.

    Raises:
        DlcError: a variant cannot be compiled.
    """
    variants = choices(shapes)
    if len(variants) == 1:
        return compile_one(variants[0])
    packages = {f"variant{i}": compile_one(each) for i, each in enumerate(variants)}
    reason = ""
    try:
        packages[GENERAL] = compile_one(general_shapes(variants))
    except DlcError as error:
        reason = f"there is no general code: {error}"
        _log.warning("%s", reason)
    return _join(packages, reason)


def _join(packages: Mapping[str, Package], reason: str) -> Package:
    first = packages.get(GENERAL) or next(iter(packages.values()))
    table = {
        name: [info["shape"] for info in package.manifest["inputs"]]
        for name, package in packages.items()
        if name != GENERAL
    }
    declined = [{"pass": "variants", "node": "", "value": "", "reason": reason}] if reason else []
    manifest: dict[str, Any] = {"runtime": RUNTIME, "build": {"variants": table, "general": GENERAL in packages}}
    if GENERAL not in packages:
        manifest |= {role: _open(role, list(packages.values())) for role in ("inputs", "outputs")}
    labels = {name: f"{name} {_text(package)}" for name, package in packages.items()}
    return join(packages, first, manifest, labels, declined=declined)


def _text(package: Package) -> str:
    return ", ".join(f"{i['name']}=[{','.join(str(d) for d in i['shape'])}]" for i in package.manifest["inputs"])


def _open(role: str, packages: Sequence[Package]) -> list[dict[str, Any]]:
    """Inputs or outputs of all variants: an extent in which they differ has a name."""
    result = []
    for position, info in enumerate(packages[0].manifest[role]):
        every = zip(*(p.manifest[role][position]["shape"] for p in packages), strict=True)
        shape = [d[0] if len(set(d)) == 1 else f"{role[:-1]}{position}_{axis}" for axis, d in enumerate(every)]
        result.append({**info, "shape": shape})
    return result
