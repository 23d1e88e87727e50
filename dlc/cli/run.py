"""``dlc run``: a package on inputs from a file, or on random ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from dlc.cli import common
from dlc.errors import DlcError


@click.command(short_help="Run a package.")
@click.argument("package", type=common.PATH)
@click.option("--inputs", type=common.PATH, help="An .npz with an array for each input, zoo:NAME, or a folder of them.")
@click.option("--random", is_flag=True, help="Random inputs instead.")
@common.seed_option
@common.shape_option
@click.option("-o", "--output", type=common.PATH, help="Where to write the outputs: an .npz (a folder for a folder).")
@common.threads_option
@common.json_option
@common.verbose_option
def run(
    package: Path,
    inputs: Path | None,
    random: bool,
    seed: int,
    shapes: common.Shapes,
    output: Path | None,
    threads: int,
    as_json: bool,
) -> None:
    """Run PACKAGE and write or summarise its outputs."""
    import dlc
    from dlc.check import random_inputs

    if (inputs is None) == (not random):
        raise DlcError("give either --inputs FILE.npz or --random")
    summaries = {}
    with dlc.load(package, threads) as session:
        sets = (
            common.input_sets(inputs, session.inputs) if inputs else [("", random_inputs(session.inputs, shapes, seed))]
        )
        several = inputs is not None and (inputs.is_dir() or len(sets) > 1)
        if output is not None and not several:
            common.check_writable(output)
        if output is not None and several and not output.is_dir():
            raise DlcError(f"cannot write {output}: there are several inputs, so it must be a folder that exists")
        results = session.map(arrays for _, arrays in sets)
        for label, _ in sets:
            try:
                outputs = next(results)
            except DlcError as error:
                where = f"{inputs / label if several else inputs}: " if inputs is not None else ""
                raise DlcError(f"{where}{error}") from error
            if output is not None:
                common.save_npz(output / label if several else output, outputs)
            summaries[label] = {name: _summary(array) for name, array in outputs.items()}
    if as_json:
        click.echo(json.dumps(summaries if several else next(iter(summaries.values())), indent=1))
        return
    for label, summary in summaries.items():
        for name, row in summary.items():
            shape = ", ".join(map(str, row["shape"]))
            spread = f"  min {row['min']:.6g}  mean {row['mean']:.6g}  max {row['max']:.6g}" if "min" in row else ""
            click.echo(f"{label + ': ' if label and several else ''}{name}: {row['dtype']}[{shape}]{spread}")


def _summary(array: np.ndarray) -> dict[str, Any]:
    row: dict[str, Any] = {"dtype": str(array.dtype), "shape": list(array.shape)}
    if array.size and array.dtype.kind != "c":
        wide = array.astype(np.float64)
        row |= {"min": float(wide.min()), "mean": float(wide.mean()), "max": float(wide.max())}
    return row
