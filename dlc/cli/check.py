"""``dlc check``: a package beside another implementation of the model it was compiled from."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dlc.check import ATOL, RTOL, Comparison, Report
from dlc.cli import common


@click.command(short_help="Compare a package with another implementation of its model.")
@click.argument("package", type=common.PATH)
@click.option("--against", required=True, metavar="MODEL.onnx", help="The model: an .onnx file or zoo:NAME.")
@click.option(
    "--inputs", type=common.PATH, help="An .npz with an array for each input, zoo:NAME, or a folder (default: random)."
)
@common.seed_option
@common.shape_option
@click.option("--atol", type=click.FloatRange(0), default=ATOL, show_default=True, help="Absolute tolerance.")
@click.option("--rtol", type=click.FloatRange(0), default=RTOL, show_default=True, help="Relative tolerance.")
@click.option("--snr", type=float, metavar="DB", help="Instead: the least signal-to-noise ratio of each output.")
@click.option("--per-node", is_flag=True, help="Compare every kernel's value and name the first node that differs.")
@common.threads_option
@common.json_option
@common.verbose_option
@click.pass_context
def check(
    ctx: click.Context,
    package: Path,
    against: str,
    inputs: Path | None,
    seed: int,
    shapes: common.Shapes,
    atol: float,
    rtol: float,
    snr: float | None,
    per_node: bool,
    threads: int,
    as_json: bool,
) -> None:
    """Hold PACKAGE to onnxruntime, or to onnx.reference where that is not installed; exit 1 when they differ."""
    import dlc
    from dlc.check import Tolerance, random_inputs
    from dlc.check import check as run_check
    from dlc.oracle import find_oracle

    session = dlc.load(package, threads)
    sets = [arrays for _, arrays in common.input_sets(inputs, session.inputs)] if inputs else None
    with common.progress("checking"):
        oracle = find_oracle(against)
        sets = sets or [random_inputs(session.inputs, shapes, seed)]
        report = run_check(session, oracle, sets, Tolerance(rtol, atol, snr), per_node)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=1))
    else:
        _print(report, per_node)
    ctx.exit(0 if report.agrees else 1)


def _print(report: Report, per_node: bool) -> None:
    click.echo(f"oracle: {report.oracle}")
    for row in report.outputs:
        click.echo(f"output '{row.name}': {_verdict(row)}")
    if not per_node:
        return
    first = report.first_difference
    click.echo(f"nodes: {len(report.nodes)} compared, {len(report.skipped)} have no value in the model to compare with")
    if first is None:
        click.echo("no node differs")
    else:
        kernel = f", kernel {first.kernel}" if first.kernel else ""
        click.echo(f"first node that differs: {first.node} (value '{first.name}'{kernel}): {first.reason}")


def _verdict(row: Comparison) -> str:
    if row.max_abs is None and row.reason:
        return f"differs: {row.reason}"
    snr = "equal" if row.snr is None else f"{row.snr:.1f} dB"
    largest = f"largest difference {row.max_abs:.3g}" if row.max_abs is not None else ""
    return f"agrees ({largest}, {snr})" if row.agrees else f"differs: {row.reason} ({snr})"
