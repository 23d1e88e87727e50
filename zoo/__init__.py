"""The model zoo: small trained models that the tests, the benchmarks and ``zoo:NAME`` on the command line use.

A family is a folder here; ``family.py`` says what its modules provide, and what they share lies beside it. The
committed model is ``NAME/NAME.onnx``, its measured figures are in ``NAME/card.md``.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from dlc.errors import DlcError

#: The families: every folder below this one that is a package.
FAMILIES: tuple[str, ...] = tuple(sorted(found.name for found in pkgutil.iter_modules(__path__) if found.ispkg))


def family_package(name: str) -> str:
    """Return the import path of the family `name`.

    Raises:
        DlcError: no such family; the message lists those there are.
    """
    if name not in FAMILIES:
        raise DlcError(f"no model {name!r} in the zoo (known: {', '.join(FAMILIES)})")
    return f"{__name__}.{name}"


def model_path(name: str) -> Path:
    """Return the path of the committed ONNX file of the family `name`, which ``zoo:NAME`` stands for.

    Raises:
        DlcError: no such family; the message lists those there are.
    """
    return Path(__file__).parent / family_package(name).rpartition(".")[2] / f"{name}.onnx"


def samples(name: str, part: str) -> dict[str, Any]:
    """Return real inputs of the family `name` by input name, samples along the first axis: what ``zoo:NAME`` stands
    for where data is asked for.

    Args:
        name: the family.
        part: ``calibration`` or ``test``.

    Raises:
        DlcError: no such family; the message lists those there are.
    """
    data = importlib.import_module(f"{family_package(name)}.data")
    return dict(data.samples(part))


def read_card(name: str) -> dict[str, Any]:
    """Return the data at the head of the family's ``card.md``: see `dlc.zoo.cards`.

    Raises:
        DlcError: no such family, or its card has no such head.
    """
    from dlc.zoo.cards import read_head

    return read_head(model_path(name).with_name("card.md"))
