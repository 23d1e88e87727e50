"""``dlc quantize``: an ONNX model into one with Q/DQ nodes, for any runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dlc.cli import common
from dlc.runtime.files import atomic_write


@click.command(short_help="Write a model with Q/DQ nodes, for any runtime.")
@click.argument("model")
@click.option("-o", "--output", type=common.PATH, required=True, callback=common.writable, help="The .onnx to write.")
@click.option(
    "--calibration", metavar="F", required=True, help="An .npz file or a folder of them, random, or random:SEED."
)
@common.method_option
@common.verbose_option
def quantize(model: str, output: Path, calibration: str, calibration_method: Any) -> None:
    """Write MODEL with Quantize/DequantizeLinear nodes at calibrated scales."""
    import dlc

    with common.progress("quantising"):
        proto = dlc.quantize(model, calibration, calibration_method=calibration_method)
        with atomic_write(output) as file:
            file.write(proto.SerializeToString(deterministic=True))
    count = sum(node.op_type == "QuantizeLinear" for node in proto.graph.node)
    size = common.size_text(output.stat().st_size)
    click.echo(f"wrote {output}: {size}, {count} values quantised")
