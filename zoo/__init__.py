"""The model zoo: small trained models that the tests, the benchmarks and ``zoo:NAME`` on the command line use.

Each family is a subpackage with the same files: ``data`` (loaders, no torch), ``model``, ``train`` and ``export``
(torch), ``evaluate`` (no torch), the committed ``NAME.onnx`` and ``card.md`` with its measured figures.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from dlc.errors import DlcError

#: Family name -> its package. The committed model is ``NAME.onnx`` in that package's folder.
FAMILIES: dict[str, str] = {"vision": "dlc.zoo.vision"}


def family_package(name: str) -> str:
    """Return the import path of the family `name`.

    Raises:
        DlcError: no such family; the message lists those there are.
    """
    if name not in FAMILIES:
        raise DlcError(f"no model {name!r} in the zoo (known: {', '.join(sorted(FAMILIES))})")
    return FAMILIES[name]


def model_path(name: str) -> Path:
    """Return the path of the committed ONNX file of the family `name`, which ``zoo:NAME`` stands for.

    Raises:
        DlcError: no such family; the message lists those there are.
    """
    folder = family_package(name).rpartition(".")[2]
    return Path(__file__).parent / folder / f"{name}.onnx"


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
    """Return the data at the head of the family's ``card.md``: its figures as the evaluation measured them.

    The head stands between two lines ``---`` and holds lines ``key: value``, the values being JSON.

    Raises:
        DlcError: no such family, or its card has no such head.
    """
    path = model_path(name).with_name("card.md")
    try:
        _, head, _ = path.read_text().split("---\n", 2)
        pairs = (line.split(": ", 1) for line in head.splitlines())
        return {key: json.loads(value) for key, value in pairs}
    except (OSError, ValueError) as error:
        raise DlcError(f"{path} is not a model card: {error}") from error
