"""docs/operators.md is in step with the code: the whole of what is quick to find, a sample of what is not."""

from __future__ import annotations

import re

from dlc.ir.ops import OPS
from scripts import operators
from scripts.make_docs import COLUMNS, DOCUMENT, table

EVERY = 30  # of the node cases, one in so many is imported here


def _rows(text: str) -> dict[str, list[str]]:
    """The rows of the first table by their first cell."""
    lines = text.split(f"| {' | '.join(COLUMNS)} |\n")[1].split("\n\n")[0].splitlines()[1:]
    return {cells[0]: cells[1:] for cells in ([c.strip() for c in line.strip("|").split("|")] for line in lines)}


def _parts(cell: str) -> set[str]:
    """Units, reasons and types."""
    return set(re.split(r"[:;,] (?:not for )?", cell)) - {"", "none"}


def test_versions_and_counts_are_those_of_the_code() -> None:
    document = _rows(DOCUMENT.read_text())
    made = {row[0]: row[1:] for row in operators.rows(operators.survey([], []))}
    assert list(document) == list(made), "run `make docs`"
    assert {k: (v[0], v[-1]) for k, v in document.items()} == {k: (v[0], v[-1]) for k, v in made.items()}


def test_failing_cases_and_the_operators_of_the_ir_are_listed() -> None:
    text = DOCUMENT.read_text()
    assert table(("case", "target", "reason"), operators.failing()) in text
    assert table(("operator", "kind"), ([f"`{name}`", spec.kind] for name, spec in sorted(OPS.items()))) in text


def test_what_a_sample_of_the_cases_shows_is_in_the_document() -> None:
    document = _rows(DOCUMENT.read_text())
    better = {"": 0, "float": 1, "table": 2, "integer": 3}
    found = operators.survey([], operators.plain_cases()[::EVERY])
    seen = [row for row in operators.rows(found) if row[2]]
    assert len(seen) > 30
    for label, _, *cells, _ in seen:
        _, *listed, _ = document[label]
        for column, made, told in zip(COLUMNS[2:-1], cells, listed, strict=True):
            if column == "int8":
                assert better[made] <= better[told], (label, column)
            elif made != "folded":
                assert _parts(made) <= _parts(told), (label, column)
