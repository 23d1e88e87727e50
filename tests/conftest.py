"""What holds for every test."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

# A test compiles what is in the tree. The compile cache is off, in the processes that tests start too; the tests of the
# cache itself turn it on, in folders of their own.
os.environ["DLC_CACHE_SIZE"] = "0"


def pytest_configure(config: pytest.Config) -> None:
    """Leave out what the machine remembers, such as measured speeds. Workers take the first process's folder."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="dlc-tests-")
        os.environ["DLC_CACHE"] = folder.name
        config.add_cleanup(folder.cleanup)


@pytest.fixture(autouse=True, scope="session")
def _guard() -> Iterator[None]:
    """With ``DLC_GUARD=1`` whatever a test compiles for the CPU runs in guarded memory, see `tests.guard`."""
    if not os.environ.get("DLC_GUARD"):
        yield
        return
    from tests.guard import guarded

    with guarded():
        yield
