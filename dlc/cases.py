"""Code for several ranges of sizes in one package, where what a model does depends on comparisons of its extents.

An exporter writes `Squeeze` as a branch: dropped where the extent is one, else kept, a result of two ranks, which no
kernel takes; whatever follows would run on the host. For sizes on one side of the comparison the branch is decided. So
a model that needs the host is imported once for each range between two cuts, and each range in which the host has less
to do gets code of its own. All other sizes take the general code.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlc.errors import DlcError
from dlc.package import Package
from dlc.runtime.cases import GENERAL

if TYPE_CHECKING:
    from dlc.pipeline import Context
    from dlc.targets.base import Target

RUNTIME = "dlc.runtime.cases"
Ranges = Mapping[str, tuple[int, int]]
_MOST = 16  # ranges that are looked at
_LARGEST = 1_000_000_000  # size that a symbol stands for


def ranges_of(cuts: Mapping[str, Sequence[int]]) -> Iterator[Ranges]:
    """Every combination of the ranges between the cuts of each symbol; none where they are too many."""
    pieces = {}
    for name, found in cuts.items():
        ends = sorted({1, *found, _LARGEST + 1})
        pieces[name] = [(least, behind - 1) for least, behind in itertools.pairwise(ends)]
    combinations = itertools.product(*pieces.values())
    if all(pieces.values()) and _count(pieces) <= _MOST:
        yield from (dict(zip(pieces, each, strict=True)) for each in combinations)


def _count(pieces: Mapping[str, Sequence[Any]]) -> int:
    count = 1
    for each in pieces.values():
        count *= len(each)
    return count


def hosted(module: Any, target: Target) -> int:
    """How many nodes of a module the target leaves to the host, in blocks of control flow too."""
    from dlc.ir.convert import view
    from dlc.ir.graph import Graph
    from dlc.ir.ops.host import ITEM

    def count(graph: Graph) -> int:
        own = sum(target.declines(node) is not None for node in graph.nodes if node.op != ITEM)
        return own + sum(count(block) for node in graph.nodes for block in node.blocks)

    return count(view(module))


def compile_cases(
    general: Package,
    spared: int,
    cuts: Mapping[str, Sequence[int]],
    imported: Callable[[Ranges], tuple[Any, Context]],
    target: Target,
) -> Package:
    """The package with code for the ranges of sizes in which the host has less to do; `general` where there are none.

    Args:
        general: the code for all sizes, which leaves `spared` nodes to the host.
        cuts: see ``dlc.cuts`` in `dlc.frontends.onnx.write`.
        imported: makes the module for certain ranges, behind the common passes, and the context of its compilation.
    """
    from dlc.compiler import compile_module
    from dlc.join import join

    packages, table = {}, []
    for ranges in ranges_of(cuts):
        try:
            module, context = imported(ranges)
            if hosted(module, target) >= spared:
                continue
            package = compile_module(module, context)
        except DlcError:  # sizes that the model does not take: the general code says so
            continue
        packages[f"case{len(table)}"] = package
        table.append({name: list(found) for name, found in ranges.items()})
    if not packages:
        return general
    labels = {f"case{i}": f"case{i} {_text(ranges)}" for i, ranges in enumerate(table)}
    manifest = {"runtime": RUNTIME, "build": {"cases": table}}
    return join({**packages, GENERAL: general}, general, manifest, labels)


def _text(ranges: Mapping[str, Sequence[int]]) -> str:
    shown = {name: f"{least} to {most}" if most < _LARGEST else f"from {least}" for name, (least, most) in ranges.items()}
    return ", ".join(f"{name} {text}" for name, text in shown.items())
