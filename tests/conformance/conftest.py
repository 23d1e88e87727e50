"""Options and the summary of the conformance run."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.conformance import runner

_KEY = "conformance"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--target", default="reference", help="what runs the ONNX node cases: reference, cpu, ...")
    group.addoption("--update-passing", action="store_true", help="rewrite the lists of cases expected to pass")


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--target", default="reference"))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    seen: dict[str, tuple[str, str]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            found = dict(getattr(report, "user_properties", ())).get(_KEY)
            if found is not None:
                name, status, reason = found
                seen[name] = (status, reason)
    if not seen:
        return
    target = config.getoption("--target", default="reference")
    expected = runner.listed(target)
    write = terminalreporter.write_line
    passed = [n for n, (status, _) in seen.items() if status == "pass"]
    terminalreporter.section(f"ONNX node cases on {target}")
    write(f"{len(passed)} of {len(seen)} pass")
    fresh = sorted(n for n in passed if expected.get(n, "new"))
    if fresh:
        write(f"newly passing (run with --update-passing): {', '.join(fresh)}")
    reasons = Counter(reason.split(" in '")[0] for status, reason in seen.values() if status != "pass")
    for reason, count in reasons.most_common():
        write(f"{count:5d}  {reason[:110]}")
    if config.getoption("--update-passing", default=False):
        runner.write_lists({n: (status, reason) for n, (status, reason) in seen.items()}, target)
