"""One row of `dlc explain` for each kernel: which node, where, how, and why not better."""

from __future__ import annotations

from typing import Any

from dlc.ir.graph import Node
from dlc.targets.cpu.isa import Isa
from dlc.targets.lowering import region_row

_BY_ANCHOR = {
    "dlc.conv": "implicit GEMM",
    "dlc.matmul": "GEMM",
    "dlc.grouped_matmul": "grouped GEMM",
    "dlc.block_matmul": "4-bit GEMM",
}
_BY_UNIT = {"winograd": "Winograd GEMM"}


def _tile(schedule: dict[str, Any], isa: Isa) -> str:
    if "rows" in schedule:
        first, last, _ = schedule["band"]
        sides = [f"before diagonal {first}"] if first is not None else []
        sides += [f"behind diagonal {last}"] if last is not None else []
        hidden = f", none {' or '.join(sides)}" if sides else ""
        return f"{schedule['rows']} queries and {schedule['block']} keys at a time{hidden}"
    if "mr" not in schedule:
        return ""
    outer = f" of {schedule['mo']} lines" if schedule.get("mo", 1) > 1 else ""
    if schedule.get("unit") == "winograd":
        return f"{schedule['mr']}x{schedule['nr'] * isa.lanes()} for {schedule['tile']}x{schedule['tile']} outputs"
    return f"{schedule['mr']}x{schedule['nr'] * isa.lanes()}{outer}, {schedule['hot']} hot"


def _kernel(node: Node, anchor: str, schedule: dict[str, Any], isa: Isa) -> str:
    if schedule.get("unit") == "plain":
        return f"plain loops {isa.name}"
    # Where the tiles of AMX do not fit a problem, the same instruction set's vectors take it.
    vectors = "avx512_bf16" if isa.bfloat16 else "avx512_vnni"
    unit = isa.name if isa.dot != "amx" or schedule.get("unit") == "amx" else vectors
    assert node.body is not None
    kind = node.attrs["dlc.kind"]
    name = node.body.nodes[-1].op.removeprefix("dlc.") if kind == "opaque" else kind
    anchor = "" if kind == "attention" else anchor
    return f"{_BY_UNIT.get(schedule.get('unit', ''), _BY_ANCHOR.get(anchor, name))} {unit}"


def _sources(node: Node) -> str:
    """The nodes of the model that are in a region with several anchors, which no single one of them names."""
    assert node.body is not None
    if node.attrs["dlc.kind"] != "attention":
        return ""
    return ", ".join(dict.fromkeys(n.origin.node or n.origin.value for n in node.body.nodes))


def explanation(node: Node, symbol: str, isa: Isa, note: str = "") -> dict[str, Any]:
    """The row as JSON; `note` is what the kernel's family says of itself."""
    assert node.body is not None
    schedule = node.attrs.get("dlc.schedule", {})
    anchor = next((n.op for n in node.body.nodes if n.op in _BY_ANCHOR), "")
    return {
        **region_row(node, symbol),
        "kernel": _kernel(node, anchor, schedule, isa),
        "tile": _tile(schedule, isa),
        "predicted_us": schedule.get("predicted_us"),
        "predicted_for": schedule.get("predicted_for", ""),
        "sources": _sources(node),
        "why_not_better": schedule.get("note", "") or note,
    }
