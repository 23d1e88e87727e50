"""``dlc bench``: how fast a package is, alone or beside other runtimes."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dlc.cli import common
from dlc.errors import DlcError


@click.command(short_help="Time a package, alone or beside other runtimes.")
@click.argument("package", type=common.PATH)
@click.option("--model", metavar="MODEL.onnx", help="What other runtimes are given: an .onnx file or zoo:NAME.")
@click.option("--against", default="", metavar="A,B", help="onnxruntime, openvino: timed in turns.")
@click.option("--inputs", type=common.PATH, help="An .npz with an array for each input, zoo:NAME (default: random).")
@common.seed_option
@common.shape_option
@click.option("--iterations", type=click.IntRange(1), help="Runs of each (default: about two seconds' worth).")
@click.option("--warmup", type=click.IntRange(0), default=10, show_default=True, help="Runs before timing.")
@click.option("--memory", is_flag=True, help="Peak memory, too: of each runtime, and of compiling --model.")
@common.threads_option
@common.json_option
@common.verbose_option
def bench(
    package: Path,
    model: str | None,
    against: str,
    inputs: Path | None,
    seed: int,
    shapes: common.Shapes,
    iterations: int | None,
    warmup: int,
    memory: bool,
    threads: int,
    as_json: bool,
) -> None:
    """Time PACKAGE: medians and percentiles of single runs, and the ratio to other runtimes with its interval."""
    import dlc
    from dlc import bench as benchmark
    from dlc.check import random_inputs
    from dlc.compiler import model_source
    from dlc.package import Package

    session = dlc.load(package, threads)
    path = Path(model_source(model)) if model else None
    if path is not None and not path.is_file():
        raise DlcError(f"cannot read {path}: no such file")
    if inputs is not None and inputs.is_dir():
        raise DlcError(f"{inputs}: bench takes one .npz file, not a folder")
    arrays = common.load_npz(inputs) if inputs else random_inputs(session.inputs, shapes, seed)
    names = [name.strip() for name in against.split(",") if name.strip()]
    with common.progress("timing") as update:
        timings = benchmark.bench(session, arrays, path, names, iterations, warmup, threads, update)
    if memory:
        timings = benchmark.with_memory(timings, Package.open(package), arrays, path, names, threads)
    if as_json:
        click.echo(json.dumps(benchmark.as_json(timings), indent=1))
        return
    rows = [(t.engine, _us(t.median), _us(t.p90), _us(t.p99), _us(t.minimum), t.iterations, _ratio(t)) for t in timings]
    columns = ("runtime", "median us", "p90", "p99", "least", "runs", "time / dlc's (95 %)")
    common.print_table("", columns if len(rows) > 1 else columns[:-1], rows if len(rows) > 1 else [rows[0][:-1]])
    if memory:
        peaks = [(t.engine, t.peak) for t in timings] + [("compiling", timings[0].compile_peak)]
        shown = [(name, f"{peak / 1e6:.0f} MB") for name, peak in peaks if peak is not None]
        common.print_table("peak memory, each in a process of its own", ("process", "peak"), shown)


def _us(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _ratio(timing: object) -> str:
    ratio, low, high = (getattr(timing, key) for key in ("ratio", "low", "high"))
    return "" if ratio is None else f"{ratio:.2f} ({low:.2f} to {high:.2f})"
