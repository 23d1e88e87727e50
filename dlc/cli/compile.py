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
@click.option("--quantize", default="none", show_default=True, help="none, int8 or int8-dynamic.")
@common.calibration_option
@common.method_option
@common.arithmetic_option
@common.shape_option
@common.verbose_option
def compile(
    model: str,
    output: Path,
    target: str,
    quantize: Any,
    calibration: str | None,
    calibration_method: Any,
    arithmetic: Any,
    shapes: common.Shapes,
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
            shapes,
            calibration_method=calibration_method,
            progress=update,
        )
        package.save(output)
    kernels = len(package.json("explain.json")["nodes"])
    size, seconds = common.size_text(output.stat().st_size), time.perf_counter() - started
    click.echo(f"wrote {output}: {size}, target {package.manifest['target']}, {kernels} kernels, in {seconds:.1f} s")
