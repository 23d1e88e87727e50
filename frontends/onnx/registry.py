"""The table of converters: one function an ONNX operator, found by domain, name and opset version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Converter = Callable[..., Any]
_F = TypeVar("_F", bound=Converter)
_TABLE: dict[tuple[str, str], dict[int, Converter]] = {}


def converter(*op_types: str, since: int = 1, domain: str = "") -> Callable[[_F], _F]:
    """Register a converter for operators from opset version `since` of their domain on.

    It is called with a `Context` and one `Tensor` (or None, for an absent optional input) an input of the node, and
    returns the output tensor or a tuple of them; None stands for an optional output that it does not make.
    """

    def add(function: _F) -> _F:
        for op_type in op_types:
            versions = _TABLE.setdefault((domain, op_type), {})
            if since in versions:
                raise ValueError(f"converter of {op_type} since {since} is registered twice")
            versions[since] = function
        return function

    return add


def lookup(domain: str, op_type: str, version: int) -> Converter | None:
    """The converter for an operator at an opset version: the newest one that is not newer than `version`."""
    versions = _TABLE.get((domain, op_type), {})
    usable = [since for since in versions if since <= version]
    return versions[max(usable)] if usable else None


def supported() -> dict[tuple[str, str], list[int]]:
    """Every (domain, operator) with the opset versions at which a converter starts."""
    return {key: sorted(versions) for key, versions in sorted(_TABLE.items())}
