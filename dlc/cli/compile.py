"""``dlc compile``: an ONNX model into a package."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from dlc.cli import common


@click.command(short_help="Compile a model into a package.")
@click.argument("model")
@click.option("-o", "--output", type=common.PATH, required=True, callback=common.writable, help="The .dlc to write.")
@common.target_option
@click.option("--quantize", default="none", show_default=True, help="none, bf16, int8, int8-dynamic or int4.")
@common.calibration_option
@common.method_option
@common.arithmetic_option
@common.shapes_option
@click.option("--stream", is_flag=True, help="Add the form that takes a sequence in parts (session.stream()).")
@click.option("--max-length", type=int, metavar="N", help="Of --stream: how many steps a sequence may have.")
@click.option("--cascade", metavar="LARGE", help="A larger model, asked where MODEL is not sure.")
@click.option("--threshold", type=float, help="Of a cascade: LARGE is asked below this probability.")
@click.option("--agreement", type=float, help="Of a cascade: choose the threshold for this share of LARGE's answers.")
@click.option("--no-cache", is_flag=True, help="Neither look into the compile cache nor write to it.")
@common.verbose_option
def compile(
    model: str,
    output: Path,
    target: str,
    quantize: Any,
    calibration: str | None,
    calibration_method: Any,
    arithmetic: Any,
    shapes: Any,
    stream: bool,
    max_length: int | None,
    cascade: str | None,
    threshold: float | None,
    agreement: float | None,
    no_cache: bool,
) -> None:
    """Compile MODEL, an .onnx file or zoo:NAME, into a package."""
    import dlc

    started = time.perf_counter()
    with common.progress("compiling") as update:
        package = dlc.compile(
            model,
            target,
            quantize,
            calibration,
            arithmetic,
            {name: given[0] if len(given) == 1 else given for name, given in shapes.items()},
            calibration_method=calibration_method,
            stream=stream,
            max_length=max_length,
            cascade=cascade,
            threshold=threshold,
            agreement=agreement,
            progress=update,
            cache=not no_cache,
        )
        package.save(output)
    kernels = len(package.json("explain.json")["nodes"])
    size, seconds = common.size_text(output.stat().st_size), time.perf_counter() - started
    click.echo(f"wrote {output}: {size}, target {package.manifest['target']}, {kernels} kernels, in {seconds:.1f} s")
