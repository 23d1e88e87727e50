"""``dlc targets``: what there is to compile for, as this machine has it."""

from __future__ import annotations

import json
from typing import Any

import click

from dlc.cli import common
from dlc.errors import DlcError


def describe(name: str) -> dict[str, Any]:
    """A target's own description; where it cannot be loaded, why."""
    from dlc.targets.base import find_target

    try:
        return find_target(name).describe()
    except DlcError as error:
        return {"available": False, "reason": str(error)}


@click.command(short_help="List the targets, or describe one.")
@click.argument("name", required=False)
@common.json_option
@common.verbose_option
def targets(name: str | None, as_json: bool) -> None:
    """List the targets, or describe the one called NAME (such as cpu or cpu:avx2)."""
    from dlc.targets.base import find_target, target_names

    found = {name: find_target(name).describe()} if name else {each: describe(each) for each in target_names()}
    if as_json:
        click.echo(json.dumps(found, indent=1, sort_keys=True, default=str))
        return
    if name:
        for key, value in found[name].items():
            click.echo(f"{key}: {_text(value)}")
        return
    rows = [
        (each, "yes" if d.get("available", True) else "no", d.get("description") or d.get("reason") or "")
        for each, d in found.items()
    ]
    common.print_table("", ("target", "available", "description"), rows)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(_text(item) for item in value)
    return str(value)
