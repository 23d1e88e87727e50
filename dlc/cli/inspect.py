"""``dlc inspect``: what an .onnx file or a package holds."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click

from dlc.cli import common
from dlc.errors import DlcError
from dlc.runtime.demands import Demands

_ZIP = b"PK\x03\x04"


@click.command(short_help="Describe an ONNX model or a package.")
@click.argument("file")
@click.option("--ir", "stage", metavar="STAGE", help="Print the IR behind this stage: frontend, or a pass.")
@click.option(
    "--supported",
    is_flag=True,
    help="Say where each operator would run on each target; exit 1 when some are not supported.",
)
@common.target_option
@click.option("--quantize", default="none", show_default=True, help="With --ir or --supported: none or int8.")
@common.calibration_option
@common.arithmetic_option
@common.shape_option
@common.json_option
@common.verbose_option
@click.pass_context
def inspect(
    ctx: click.Context,
    file: str,
    stage: str | None,
    supported: bool,
    target: str,
    quantize: Any,
    calibration: str | None,
    arithmetic: Any,
    shapes: common.Shapes,
    as_json: bool,
) -> None:
    """Describe FILE: an .onnx model (or zoo:NAME) or a .dlc package."""
    from dlc.compiler import model_source, module_at
    from dlc.options import Options

    source = Path(model_source(file))
    if _is_package(source):
        if stage or supported:
            raise DlcError(f"{source}: --ir and --supported are for models, and this is a package")
        _show(package_summary(source), as_json)
        return
    if stage is not None:
        options = Options(target, quantize, arithmetic, shapes=shapes)
        click.echo(module_at(source, options, stage, calibration).script(show_meta=False))
        return
    if supported:
        from dlc.cli.supported import report, show

        found = report(source, Options(target, quantize, arithmetic, shapes=shapes), calibration)
        click.echo(json.dumps(found, indent=1)) if as_json else show(found)
        ctx.exit(1 if found["unsupported"] else 0)
    _show(model_summary(source), as_json)


def _is_package(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == _ZIP
    except OSError as error:
        raise DlcError(f"cannot read {path}: {error.strerror or error}") from error


def package_summary(path: Path) -> dict[str, Any]:
    """The manifest for people: what it was made of and what it needs."""
    from dlc.package import read_manifest

    manifest = read_manifest(path)
    options = manifest.get("options", {})
    return {
        "file": str(path),
        "format": manifest["format"],
        "target": manifest.get("target"),
        "size": common.size_text(path.stat().st_size),
        "inputs": [_tensor(t) for t in manifest.get("inputs", [])],
        "outputs": [_tensor(t) for t in manifest.get("outputs", [])],
        "limits": Demands.of(manifest).lines(),
        "options": {key: options[key] for key in sorted(options) if options[key] and key != "target"},
        "variants": [_variant(v) for v in manifest.get("variants", [])],
        "members": [f"{name} ({common.size_text(m['size'])})" for name, m in sorted(manifest["members"].items())],
        "versions": manifest.get("versions", {}),
    }


def _variant(record: dict[str, Any]) -> str:
    return f"{record['name']} (needs {', '.join(record['requires']) or 'nothing'})"


def _tensor(record: dict[str, Any]) -> str:
    return f"{record['name']}: {record['dtype']}[{', '.join(map(str, record['shape']))}]"


def model_summary(path: Path) -> dict[str, Any]:
    """What an ONNX file holds, without importing it."""
    from dlc.frontends.onnx.functions import inventory
    from dlc.frontends.onnx.load import parse

    model = parse(path).proto
    constants = {t.name for t in model.graph.initializer}
    counts = Counter(f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in model.graph.node)
    return {
        "file": str(path),
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "ir version": model.ir_version,
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": [_value_info(v) for v in model.graph.input if v.name not in constants],
        "outputs": [_value_info(v) for v in model.graph.output],
        "parameters": sum(_count(t.dims) for t in model.graph.initializer),
        "functions": [f"{f.domain}.{f.name}" for f in model.functions],
        "operators": dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        "unsupported": inventory(model).text(),
    }


def _count(dims: Any) -> int:
    product = 1
    for dim in dims:
        product *= dim
    return product


def _value_info(value: Any) -> str:
    import onnx

    tensor = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    if not tensor.HasField("shape"):
        return f"{value.name}: {name}"
    dims = [d.dim_param or (str(d.dim_value) if d.HasField("dim_value") else "?") for d in tensor.shape.dim]
    return f"{value.name}: {name}[{', '.join(dims)}]"


def _show(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(summary, indent=1))
        return
    for key, value in summary.items():
        if isinstance(value, dict):
            click.echo(f"{key}: {', '.join(f'{k} {v}' for k, v in value.items()) or 'none'}")
        elif isinstance(value, list):
            click.echo(f"{key}:{'' if value else ' none'}")
            for item in value:
                click.echo(f"  {item}")
        else:
            click.echo(f"{key}: {value if value not in ('', None) else 'none'}")
