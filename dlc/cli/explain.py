"""``dlc explain``: what became of every node, and why not better."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dlc.cli import common
from dlc.errors import DlcError

if TYPE_CHECKING:
    from dlc.explain import Explanation
    from dlc.package import Package


@click.command(short_help="Show what became of every node, and why not better.")
@click.argument("package", type=common.PATH)
@click.option("--level", metavar="L", help="Of a package with code for several levels: this one's alone.")
@click.option("--stream", is_flag=True, help="Of the form that takes a sequence in parts.")
@click.option("--measure", is_flag=True, help="Run every kernel by itself and show its time, too.")
@common.shape_option
@common.seed_option
@common.json_option
@common.verbose_option
def explain(
    package: Path, level: str | None, stream: bool, measure: bool, shapes: common.Shapes, seed: int, as_json: bool
) -> None:
    """Show each kernel of PACKAGE: node, precision, kernel, tile, predicted time, and why it is not faster.

    With --measure the kernels run on random inputs, of which --shape gives the extents that are symbolic.
    """
    from dlc.explain import read
    from dlc.measured import CLOSE, share_close
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
    opened = opened.nested(opened.manifest["stream"]) if stream else opened
    explanation = _measured(opened, shapes, seed) if measure else read(opened)
    if as_json:
        close = {"predicted_close": share_close(explanation.nodes)} if measure else {}
        click.echo(json.dumps({**asdict(explanation), **close}, indent=1))
        return
    columns, rows = explanation.table()
    common.print_table(f"{package}: {len(rows)} kernels", columns, rows)
    if explanation.declined:
        declined = [(d.get("pass"), d.get("node"), d.get("reason")) for d in explanation.declined]
        common.print_table("rewrites that were not done", ("pass", "node", "reason"), declined)
    if measure:
        share = share_close(explanation.nodes)
        click.echo(f"predicted within {CLOSE} of measured: kernels of {100 * share:.0f} % of the time")


def _measured(package: Package, shapes: common.Shapes, seed: int) -> Explanation:
    """The explanation of what a session of the package runs, with the time of every kernel."""
    import dlc
    from dlc.check import random_inputs
    from dlc.explain import read
    from dlc.measured import measure

    session = dlc.load(package)
    return measure(session, read(session.package), random_inputs(session.inputs, shapes, seed))
