"""``dlc explain``: what became of every node, and why not better."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from dlc.cli import common


@click.command(short_help="Show what became of every node, and why not better.")
@click.argument("package", type=common.PATH)
@common.json_option
@common.verbose_option
def explain(package: Path, as_json: bool) -> None:
    """Show each kernel of PACKAGE: node, precision, kernel, tile, predicted time, and why it is not faster."""
    from dlc.explain import read

    explanation = read(package)
    if as_json:
        click.echo(json.dumps(asdict(explanation), indent=1))
        return
    columns, rows = explanation.table()
    common.print_table(f"{package}: {len(rows)} kernels", columns, rows)
    if explanation.declined:
        declined = [(d.get("pass"), d.get("node"), d.get("reason")) for d in explanation.declined]
        common.print_table("rewrites that were not done", ("pass", "node", "reason"), declined)
