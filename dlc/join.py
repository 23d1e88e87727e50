"""One package of several: each lies in a folder of its own, and the explanation tells of all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dlc import explain
from dlc.package import Package
from dlc.targets.base import joined_json

Rows = Sequence[Mapping[str, Any]]


def join(
    packages: Mapping[str, Package],
    base: Package,
    manifest: Mapping[str, Any],
    labels: Mapping[str, str] | None = None,
    head: Rows = (),
    declined: Rows = (),
) -> Package:
    """Nest `packages`, each in the folder of its name.

    Args:
        base: the one whose manifest says what the whole takes and gives; of its streaming form nothing is said.
        manifest: what differs from that: ``runtime``, ``build``.
        labels: what the explanation calls each; its name unless said.
        head: the first rows of the explanation.
        declined: what was not done on top of what the packages say.
    """
    members: dict[str, Any] = {}
    rows, reasons = list(head), {_key(d): d for d in declined}
    for name, package in packages.items():
        members |= package.nested_members(name)
        part, label = explain.read(package), (labels or {}).get(name, name)
        rows += [{**row, "part": ": ".join(filter(None, (label, row.get("part"))))} for row in part.nodes]
        reasons |= {_key(d): d for d in part.declined}  # what several say is said once
    record = {"nodes": rows, "declined": list(reasons.values()), "values": explain.read(base).values}
    members["explain.json"] = (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()
    kept = {key: value for key, value in base.manifest.items() if not key.startswith("stream")}
    variants = joined_json([package.manifest for package in packages.values()])
    return Package.create({**kept, "variants": variants, **manifest}, members)


def _key(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True)
