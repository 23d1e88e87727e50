"""``dlc explain``: what became of every node, and why not better."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from dlc.cli import common
from dlc.errors import DlcError


@click.command(short_help="Show what became of every node, and why not better.")
@click.argument("package", type=common.PATH)
@click.option("--level", metavar="L", help="Of a package with code for several levels: this one's alone.")
@click.option("--stream", is_flag=True, help="Of the form that takes a sequence in parts.")
@common.json_option
@common.verbose_option
def explain(package: Path, level: str | None, stream: bool, as_json: bool) -> None:
    """Show each kernel of PACKAGE: node, precision, kernel, tile, predicted time, and why it is not faster."""
    from dlc.explain import read
    from dlc.package import Package

    opened = Package.open(package)
    levels = opened.levels()
    if level is not None and level not in levels:
        raise DlcError(f"{package}: there is no level '{level}'; the package has {', '.join(levels) or 'no levels'}")
    if stream and levels and level is None:
        raise DlcError(f"{package}: say of which level, by --level: {', '.join(levels)}")
    opened = opened.nested(level) if level is not None else opened
    if stream and "stream" not in opened.manifest:
        raise DlcError(f"{package}: the package has no streaming form; compile it with --stream")
    explanation = read(opened.nested(opened.manifest["stream"]) if stream else opened)
    if as_json:
        click.echo(json.dumps(asdict(explanation), indent=1))
        return
    columns, rows = explanation.table()
    common.print_table(f"{package}: {len(rows)} kernels", columns, rows)
    if explanation.declined:
        declined = [(d.get("pass"), d.get("node"), d.get("reason")) for d in explanation.declined]
        common.print_table("rewrites that were not done", ("pass", "node", "reason"), declined)
