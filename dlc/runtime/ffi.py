"""Importing TVM, or its function interface alone, without what they drag in."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Make ``import torch`` fail, which its importers here expect, unless torch is loaded already."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


def import_tvm_ffi() -> Any:
    """The module ``tvm_ffi``, which a package's code is loaded with.

    Left alone it imports torch wherever that is installed: seconds, for a conversion of torch tensors that goes through
    DLPack here anyway. A torch that is loaded already, or is imported later, is not disturbed.
    """
    if "tvm_ffi" not in sys.modules:
        with _without_torch():
            import tvm_ffi  # noqa: F401
    return sys.modules["tvm_ffi"]


def import_tvm() -> Any:
    """The compiler's module ``tvm``, in the same way; call it before anything else imports it."""
    if "tvm" not in sys.modules:
        with _without_torch():
            import tvm  # noqa: F401
    return sys.modules["tvm"]
