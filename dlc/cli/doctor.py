"""``dlc doctor``: this machine, the versions, and what is missing."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from dlc.cli import common
from dlc.cli.cache import summary, summary_text
from dlc.cli.targets import describe

# distribution -> what it is for; without the core ones nothing is compiled
_CORE = {"apache-tvm": "compiling", "apache-tvm-ffi-orcjit": "loading", "onnx": "reading models", "numpy": "arrays"}
_EXTRA = {
    "onnxruntime": "`dlc check` by a second implementation, `dlc bench --against`: pip install 'dlc[bench]'",
    "openvino": "`dlc bench --against openvino`: pip install openvino",
    "torch": "training and exporting zoo models: pip install 'dlc[zoo]'",
    "sentencepiece": "the zoo's translation: pip install 'dlc[zoo]'",
    "sacrebleu": "the zoo's translation, its scores: pip install 'dlc[zoo]'",
}
_FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm")


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def examine() -> dict[str, Any]:
    """Everything that `dlc doctor` prints, JSON-able."""
    from dlc import __version__
    from dlc.hardware import this_machine
    from dlc.targets.base import target_names

    machine = this_machine()
    versions = {name: _version(name) for name in (*_CORE, *_EXTRA)}
    targets = {name: describe(name) for name in target_names()}
    missing = [f"{name}: needed for {use}" for name, use in _CORE.items() if versions[name] is None]
    missing += [f"{name}: optional, for {use}" for name, use in _EXTRA.items() if versions[name] is None]
    missing += [
        f"target {n}: {d.get('reason', 'not available')}" for n, d in targets.items() if not d.get("available", True)
    ]
    return {
        "dlc": __version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "cpu": machine.model,
        "arch": machine.arch,
        "cores": machine.cores,
        "caches": {"l1": machine.l1, "l2": machine.l2, "l3": machine.l3},
        "features": [name for name in _FEATURES if name in machine.features],
        "versions": versions,
        "targets": {name: bool(d.get("available", True)) for name, d in targets.items()},
        "cache": summary(),
        "missing": missing,
    }


@click.command(short_help="Show the machine, the versions, and what is missing.")
@common.json_option
@common.verbose_option
def doctor(as_json: bool) -> None:
    """Show the machine, the versions, and what is missing."""
    found = examine()
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    caches = ", ".join(f"{name.upper()} {size >> 10} KiB" for name, size in found["caches"].items())
    click.echo(f"dlc {found['dlc']}, Python {found['python']}, {found['system']}")
    click.echo(f"cpu: {found['cpu']} ({found['arch']}, {found['cores']} cores; {caches})")
    click.echo(f"features: {', '.join(found['features']) or 'none of those that kernels are written for'}")
    click.echo("versions: " + ", ".join(f"{name} {number}" for name, number in found["versions"].items() if number))
    click.echo("targets: " + ", ".join(f"{name} ({'yes' if ok else 'no'})" for name, ok in found["targets"].items()))
    click.echo(f"compile cache: {summary_text(found['cache'])}")
    for line in found["missing"]:
        click.echo(f"missing: {line}")
