"""Write docs/operators.md from the code: ``make docs``. Takes a few minutes, because every node case is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dlc.ir.ops import OPS  # noqa: E402
from scripts import operators  # noqa: E402

DOCUMENT = ROOT / "docs" / "operators.md"
HEAD = """# Operators

Written by `make docs` from the code, which imports ONNX's node cases and asks every target. For one model,
`dlc inspect MODEL.onnx --supported` says the same of its own nodes.

Random operators draw from Philox4x32-10: the same numbers in every run and on every target, decided by the attribute
`seed`, or without one by the node's name. They agree with other runtimes in distribution, not in values.

## What the ONNX importer takes

- **since**: the opset version of the domain from which on the operator is taken. *By its definition*: ONNX defines
  it by a graph of other operators, which is imported. *host*: only onnx's reference implementation has it.
- **reference, cpu, gpu, vta**: where the operator runs. *kernel*: code generated for the target. *host*: in numpy
  or onnx's reference implementation, for the reason behind the colon; where there is a *kernel* too, the reason
  tells the cases apart. *numpy*: the operator's definition in the IR. *cpu*: a kernel of the CPU beside the
  accelerator; *array in int8*: a layer of the accelerator, in a model quantised with `--arithmetic fixed`.
  *folded*: no code is left of it. *not for*: element types that stop a compilation. Empty: no case shows it.
- **int8**: what `--quantize int8` makes of it between two contractions. *integer*: integer arithmetic or moved
  codes; *table*: a table of 256 entries; *float*: it stays float. Empty: it has no float32 matrices or images in
  ONNX's cases.
- **cases**: ONNX's node cases with the operator, and how many of them pass on the CPU.

"""
MIDDLE = """
## Node cases that do not pass

"""
IR = """
## What the IR holds

"""
COLUMNS = ("operator", "since", "reference", "cpu", "int8", "gpu", "vta", "cases")


def table(columns: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', ' ') for cell in line)} |\n" for line in lines)


def main() -> None:
    """Write the file."""
    found = operators.survey(operators.vendor_models(), operators.plain_cases())
    text = HEAD + table(COLUMNS, operators.rows(found))
    text += MIDDLE + table(("case", "target", "reason"), operators.failing())
    text += IR + table(("operator", "kind"), ([f"`{name}`", spec.kind] for name, spec in sorted(OPS.items())))
    DOCUMENT.write_text(text)
    print(f"wrote {DOCUMENT.relative_to(ROOT)}: {text.count(chr(10))} lines")


if __name__ == "__main__":
    main()
