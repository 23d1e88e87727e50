"""Code for some sizes beside the general code in one package, where sizes decide what a model does.

- An exporter writes `Squeeze` as a branch: dropped where the extent is one, else kept, a result of two ranks, which no
  kernel takes; whatever follows would run on the host. Between two sizes at which the comparison changes it is decided.
- A sum of what was halved and doubled again with what was not is one of two equal extents, mostly: for some sizes they
  differ, or one is 1 and is repeated.

So a model that needs the host is imported once more for each range between two cuts, on the assumption that extents are
equal where else one would have to be 1. What leaves the host less to do gets code of its own. What that demands of the
sizes is in its manifest, and sizes that do not meet it take the general code.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from dlc.errors import DlcError
from dlc.package import Package
from dlc.runtime.cases import GENERAL
from dlc.runtime.demands import Demands

if TYPE_CHECKING:
    from dlc.pipeline import Context
    from dlc.targets.base import Target

RUNTIME = "dlc.runtime.cases"
Ranges = Mapping[str, tuple[int, int]]
_log = logging.getLogger("dlc")
_MOST = 16  # ranges that are looked at
_LARGEST = 1_000_000_000  # size that a symbol stands for


def ranges_of(cuts: Mapping[str, Sequence[int]]) -> Iterator[Ranges]:
    """Every combination of the ranges between the cuts of each symbol; none where they are too many."""
    pieces = {}
    for name, found in cuts.items():
        ends = sorted({1, *found, _LARGEST + 1})
        pieces[name] = [(least, behind - 1) for least, behind in itertools.pairwise(ends)]
    combinations = itertools.product(*pieces.values())
    if prod(len(each) for each in pieces.values()) <= _MOST:
        yield from (dict(zip(pieces, each, strict=True)) for each in combinations)


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
    """The package with code for the sizes for which the host has less to do; `general` where there are none.

    Args:
        general: the code for all sizes, which leaves `spared` nodes to the host.
        cuts: see ``dlc.cuts`` in `dlc.frontends.onnx.write`.
        imported: makes the module for certain ranges and on that assumption, behind the common passes, and the context
            of its compilation.
    """
    from dlc.compiler import compile_module
    from dlc.join import join

    packages: dict[str, Package] = {}
    declined: list[dict[str, str]] = []
    for ranges in ranges_of(cuts):
        try:
            module, context = imported(ranges)
            if hosted(module, target) >= spared:
                continue
            package = compile_module(module, context)
        except DlcError as error:  # sizes that the model does not take, mostly: the general code says so when they come
            _log.info("cases: no code for %s: %s", ranges, error)
            declined.append({"pass": "cases", "node": "", "value": "", "reason": str(error)})
            continue
        packages[f"case{len(packages)}"] = package
    if not packages:
        return general
    labels = {name: f"{name} ({', '.join(Demands.of(p.manifest).lines())})" for name, p in packages.items()}
    manifest = {"runtime": RUNTIME, "build": {"cases": list(packages)}}
    return join({**packages, GENERAL: general}, general, manifest, labels, declined=declined)
