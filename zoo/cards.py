"""Model cards: ``card.md``, a head of JSON values for programs and prose with tables for people.

The head stands between two lines ``---`` and holds lines ``key: value``. A card is written by the family's evaluation
alone, so no figure in it is typed in by hand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlc.errors import DlcError
from dlc.runtime.files import atomic_write
from dlc.zoo import model_path

#: What every head has.
REQUIRED = (
    "name", "task", "metric", "value", "text", "baseline", "claims", "training", "onnx_bytes", "onnx_sha256",
)  # fmt: skip


def trained_on(notes: Mapping[str, Any]) -> str:
    """What a model was trained on, from the notes on its training: ``one thread``, ``two threads``, or the GPU."""
    if notes.get("device", "cpu") != "cpu":
        return f"one {notes['device']}"
    return {1: "one thread", 2: "two threads"}.get(notes["threads"], f"{notes['threads']} threads")


@dataclass(frozen=True)
class Claim:
    """What was to be shown, whether the measurement shows it, and the figures that decide it."""

    text: str
    met: bool
    evidence: str


@dataclass(frozen=True)
class Card:
    """What a family's evaluation found.

    Attributes:
        name: the family.
        title: the heading.
        task: the data and what is to be done with it, in a few words.
        metric: the name of the figure and what it was measured on.
        value: the committed model's figure.
        text: the same as a person reads it.
        baseline: name and figure (as text) of what it is compared with.
        claims: see `Claim`.
        training: notes on the training of the committed model: seed, seconds and the like, as JSON has them.
        figures: further entries of the head.
        sections: heading and text of each section, in order.
    """

    name: str
    title: str
    task: str
    metric: str
    value: float
    text: str
    baseline: tuple[str, str]
    claims: Sequence[Claim]
    training: Mapping[str, Any]
    figures: Mapping[str, Any] = field(default_factory=dict)
    sections: Sequence[tuple[str, str]] = ()


def write_card(card: Card) -> Path:
    """Write ``card.md`` beside the committed model and return its path. Size and digest of the model are added."""
    model = model_path(card.name)
    head = {
        "name": card.name,
        "task": card.task,
        "metric": card.metric,
        "value": card.value,
        "text": card.text,
        "baseline": {"name": card.baseline[0], "text": card.baseline[1]},
        "claims": [{"claim": c.text, "met": c.met, "evidence": c.evidence} for c in card.claims],
        "training": dict(card.training),
        **card.figures,
        "onnx_bytes": model.stat().st_size,
        "onnx_sha256": digest(model),
    }
    lines = "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in head.items())
    claims = table(
        ("Claim", "Met", "Measured"), [(c.text, "yes" if c.met else "**no**", c.evidence) for c in card.claims]
    )
    first = (f"Written by `dlc zoo eval {card.name} --write-card`; edit the text in `zoo/{card.name}/evaluate.py`.", "")
    body = "\n".join(
        [f"# {card.title}", "", *first, "## Claims", "", claims, ""]
        + [line for heading, text in card.sections for line in (f"## {heading}", "", text.strip("\n"), "")]
    )
    path = model.with_name("card.md")
    with atomic_write(path) as file:
        file.write(f"---\n{lines}---\n\n{body}".encode())
    return path


def read_head(path: Path) -> dict[str, Any]:
    """Return the head of the card at `path`.

    Raises:
        DlcError: the file is missing or has no such head.
    """
    try:
        _, head, _ = path.read_text(encoding="utf-8").split("---\n", 2)
        pairs = (line.split(": ", 1) for line in head.splitlines())
        return {key: json.loads(value) for key, value in pairs}
    except (OSError, ValueError) as error:
        raise DlcError(f"{path} is not a model card: {error}") from error


def training_notes(name: str) -> dict[str, Any]:
    """The notes on the training of the committed model, from the present card.

    Raises:
        DlcError: there is no card, or it describes another model: then only the weights can tell.
    """
    model = model_path(name)
    head = read_head(model.with_name("card.md"))
    if head.get("onnx_sha256") != digest(model):
        raise DlcError(f"the card of {name!r} describes another model: give --weights, the file it was exported from")
    return dict(head["training"])


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
