"""ONNX's own node cases through the importer, on the reference interpreter or (``--target``) a compiled target.

`passing.txt` lists the cases that must pass and `unsupported.txt` the others with their reason; a wrong result is a
failure wherever the case is listed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conformance import runner

_LISTED = runner.listed("reference")


def test_every_case_is_listed() -> None:
    assert sorted(_LISTED) == sorted(runner.cases())


@pytest.mark.parametrize("name", sorted(_LISTED))
def test_node(name: str, target: str, record_property: Callable[[str, object], None]) -> None:
    outcome = runner.run_case(runner.cases()[name], target)
    record_property("conformance", (name, outcome.status, outcome.reason))
    if outcome.status == "pass":
        return
    expected = runner.listed(target)[name] == ""
    assert outcome.status == "unsupported" and not expected, outcome.reason
    pytest.skip(outcome.reason)
