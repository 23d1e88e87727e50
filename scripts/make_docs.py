"""Write the parts of docs/ that are made from the code: docs/operators.md."""

from __future__ import annotations

from pathlib import Path

from dlc.frontends.onnx import supported
from dlc.ir.ops import OPS

TARGET = Path(__file__).resolve().parent.parent / "docs" / "operators.md"
HEAD = """# Operators

Written by `make docs` from the code. `dlc inspect MODEL.onnx --supported` says which nodes of a model are not.

## What the ONNX importer takes

An operator that ONNX defines by a function body and that is not listed is expanded from that body. Versions are those
from which a converter holds. What no converter takes, the host runs by onnx's reference implementation where that can.

Random operators draw from Philox4x32-10: the same numbers in every run and on every target, decided by the attribute
`seed`, or without one by the node's name. They agree with other runtimes in distribution, not in values.

| domain | operator | since versions |
|---|---|---|
"""
MIDDLE = """
## What the IR holds

| operator | kind |
|---|---|
"""


def main() -> None:
    """Write the file."""
    rows = [
        f"| {domain or 'ai.onnx'} | {name} | {', '.join(map(str, versions))} |"
        for (domain, name), versions in sorted(supported().items())
    ]
    ours = [f"| `{name}` | {spec.kind} |" for name, spec in sorted(OPS.items())]
    TARGET.write_text(HEAD + "\n".join(rows) + "\n" + MIDDLE + "\n".join(ours) + "\n")
    print(f"wrote {TARGET.name}: {len(rows)} ONNX operators, {len(ours)} operators of the IR")


if __name__ == "__main__":
    main()
