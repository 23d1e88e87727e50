"""What ``dlc inspect --supported`` prints: the operators of a model, and where each would run on each target."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dlc.cli import common

if TYPE_CHECKING:
    from dlc.options import Options
    from dlc.placement import Placed

_WIDTH = 100
_NODES = 6  # nodes that a reason names
_FOLDED = "folded"
_UNKNOWN = "?"
_LEGEND = {
    "kernel": "code generated for the target",
    "host": "outside the target's kernels: control flow, numpy, or onnx's reference implementation",
    "cpu": "a kernel of the CPU that drives the accelerator",
    "array": "a layer of the accelerator",
    "numpy": "the operator's definition",
    "none": "compiling for the target stops at the node",
    _FOLDED: "computed when compiling, or part of other nodes",
    "no": "not supported: compiling stops",
    _UNKNOWN: "told once every node is supported",
}


def report(path: Path, options: Options, calibration: str | None) -> dict[str, Any]:
    """JSON-able: ``operators`` (operator, domain, nodes, and by target how many nodes run in which unit), ``reasons``
    (operator, unit, reason, targets, nodes) and ``unsupported`` (operator, domain, nodes).
    """
    from dlc.frontends.onnx.functions import inventory
    from dlc.frontends.onnx.load import parse
    from dlc.targets.base import target_names

    found = inventory(parse(path).proto)
    missing = [
        {"operator": operator, "domain": domain or "ai.onnx", "nodes": nodes}
        for (domain, operator), nodes in sorted(found.unsupported.items())
    ]
    placed = {} if missing else _placed(path, options, calibration)
    operators = [
        {
            "operator": operator,
            "domain": domain or "ai.onnx",
            "nodes": count,
            "places": None if missing else {t: dict(p.units) for t, p in placed.get(operator, {}).items()},
        }
        for (domain, operator), count in sorted(found.nodes.items(), key=lambda item: (-item[1], item[0]))
    ]
    return {
        "file": str(path),
        "targets": list(target_names()),
        "operators": operators,
        "reasons": list(_reasons(placed)),
        "unsupported": missing,
    }


def _placed(path: Path, options: Options, calibration: str | None) -> Mapping[str, dict[str, Placed]]:
    from dlc.compiler import common_module
    from dlc.targets.base import find_target, target_names

    module = common_module(path, options, calibration)
    from dlc.ir.convert import view
    from dlc.placement import placements

    return placements(view(module), [find_target(name) for name in target_names()])


def _reasons(placed: Mapping[str, dict[str, Placed]]) -> Iterator[dict[str, Any]]:
    """Each reason once, with all targets that give it for the same nodes."""
    merged: dict[tuple[Any, ...], list[str]] = {}
    for operator, by_target in placed.items():
        for target, found in by_target.items():
            for (unit, reason), nodes in found.reasons.items():
                merged.setdefault((operator, unit, reason, tuple(nodes)), []).append(target)
    for (operator, unit, reason, nodes), targets in merged.items():
        yield {"operator": operator, "unit": unit, "reason": reason, "targets": targets, "nodes": list(nodes)}


def show(found: Mapping[str, Any]) -> None:
    """The report for people, within 100 columns."""
    missing = {(m["operator"], m["domain"]): m["nodes"] for m in found["unsupported"]}
    total = sum(len(nodes) for nodes in missing.values())
    said = f"{total} node{'s' * (total != 1)} not supported" if missing else "every node is supported"
    rows, used = [], set[str]()
    for row in found["operators"]:
        name = row["operator"] if row["domain"] == "ai.onnx" else f"{row['domain']}.{row['operator']}"
        known = row["places"]
        lacks = (row["operator"], row["domain"]) in missing
        cells = [("no" if lacks else _UNKNOWN) if known is None else _cell(known.get(t, {})) for t in found["targets"]]
        used |= {part.rpartition(" ")[0] if part[-1].isdigit() else part for cell in cells for part in cell.split(", ")}
        rows.append([name, row["nodes"], *cells])
    click.echo(f"{found['file']}: {said}")
    common.print_table("", ["operator", "nodes", *found["targets"]], rows)
    for word, meaning in _LEGEND.items():
        if word in used:
            click.echo(f"  {word:8}{meaning}")
    for (operator, domain), nodes in missing.items():
        _paragraph(f"not supported: {operator} of domain '{domain}' in {_listing(nodes)}")
    for row in found["reasons"]:
        _paragraph(
            f"{row['unit']} ({', '.join(row['targets'])}): {row['operator']} {_listing(row['nodes'])}: {row['reason']}"
        )


def _cell(units: Mapping[str, int]) -> str:
    """The units, with the number of nodes where there are several."""
    if len(units) < 2:
        return next(iter(units), _FOLDED)
    return ", ".join(f"{unit} {count}" for unit, count in units.items())


def _listing(nodes: list[str]) -> str:
    more = f" and {len(nodes) - _NODES} more" if len(nodes) > _NODES else ""
    return ", ".join(f"'{node}'" for node in nodes[:_NODES]) + more


def _paragraph(text: str) -> None:
    click.echo(textwrap.fill(text, _WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False))
