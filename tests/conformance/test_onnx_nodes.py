"""ONNX's own node cases through the importer, on the reference interpreter or (``--target``) a compiled target.

`passing.txt` lists the cases that must pass and `unsupported.txt` the others with their reason, `unsupported-cpu.txt`
those that the CPU target leaves out besides. A wrong result is a failure wherever the case is listed, unless its reason
begins with ``differs:`` and says why. A sample of the cases runs on the CPU target every time.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conformance import runner

_LISTED = runner.listed("reference")


def test_every_case_is_listed() -> None:
    assert sorted(_LISTED) == sorted(runner.cases())


def test_the_sample_has_every_operator() -> None:
    passing = [name for name, reason in _LISTED.items() if not reason]
    every = set().union(*(runner.operators(runner.cases()[name]) for name in passing))
    assert every == set().union(*(runner.operators(runner.cases()[name]) for name in runner.sample()))


def hold_to_lists(name: str, target: str, outcome: runner.Outcome) -> None:
    """Fail unless the outcome is what the lists say; skip what they say does not pass."""
    if outcome.status == "pass":
        return
    expected = runner.listed(target)[name]
    differs = outcome.status == "wrong" and expected.startswith(runner.DIFFERS)
    assert differs or (outcome.status == "unsupported" and expected), outcome.reason
    pytest.skip(expected if differs else outcome.reason)


@pytest.mark.parametrize("name", sorted(_LISTED))
def test_node(name: str, target: str, record_property: Callable[[str, object], None]) -> None:
    outcome = runner.run_case(runner.cases()[name], target)
    record_property("conformance", (name, outcome.status, outcome.reason))
    hold_to_lists(name, target, outcome)


@pytest.mark.parametrize("name", runner.sample())
def test_sample_on_cpu(name: str) -> None:
    hold_to_lists(name, "cpu", runner.run_case(runner.cases()[name], "cpu"))
