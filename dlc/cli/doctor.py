"""``dlc doctor``: this machine, the versions, and what is missing."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import click

from dlc.cli import common
from dlc.cli.cache import summary, summary_text
from dlc.cli.targets import describe
from dlc.errors import DlcError

if TYPE_CHECKING:
    from dlc.hardware import Machine, Speeds

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
    from dlc.hardware import speeds_path, this_machine
    from dlc.targets.base import target_names

    machine = this_machine()
    speeds, damaged = _known_speeds(machine)
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
        "speeds": None if speeds is None else asdict(speeds),
        "speeds_file": str(speeds_path()),
        "features": [name for name in _FEATURES if name in machine.features],
        "versions": versions,
        "targets": {name: bool(d.get("available", True)) for name, d in targets.items()},
        "cache": summary(),
        "missing": [*missing, *damaged],
    }


def _known_speeds(machine: Machine) -> tuple[Speeds | None, list[str]]:
    """What was measured, and what is wrong with the file of it."""
    from dlc.hardware import load_speeds

    try:
        return load_speeds(machine), []
    except DlcError as error:
        return None, [f"measured speeds: {error}"]


def _measure() -> None:
    from dlc.hardware import save_speeds, this_machine
    from dlc.targets.cpu.speeds import measure_speeds

    with common.progress("measuring") as update:
        save_speeds(this_machine(), measure_speeds(this_machine(), update))


def _speed_rows(speeds: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("clock", f"{speeds['hertz'] / 1e9:.2f} GHz")]
    rows.append(("L3 that is ours", f"{speeds['l3'] >> 10} KiB"))
    levels = zip(("L1", "L2", "L3", "memory"), speeds["bandwidth"], strict=True)
    rows += [(f"read from {level}", f"{bandwidth / 1e9:.1f} GB/s") for level, bandwidth in levels]
    for name, rate in speeds["multiply_adds"].items():
        integers = speeds["integer_multiply_adds"][name]
        rows.append((f"multiply-adds, {name}", f"{rate / 1e9:.1f} G/s fp32, {integers / 1e9:.1f} G/s int8"))
    return rows


@click.command(short_help="Show the machine, the versions, and what is missing.")
@click.option("--measure", is_flag=True, help="Measure its speeds first, for the cost models: some seconds.")
@common.json_option
@common.verbose_option
def doctor(measure: bool, as_json: bool) -> None:
    """Show the machine, the versions, and what is missing.

    --measure keeps the clock, the bandwidths and the rates of multiply-adds that it finds in the cache directory. What
    is compiled from then on is chosen and predicted by them.
    """
    if measure:
        _measure()
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
    if found["speeds"] is None:
        click.echo("speeds: not measured on this machine; `dlc doctor --measure` does")
    else:
        click.echo(f"speeds: {found['speeds_file']}")
        common.print_table("", ("what", "measured"), _speed_rows(found["speeds"]))
    click.echo(f"compile cache: {summary_text(found['cache'])}")
    for line in found["missing"]:
        click.echo(f"missing: {line}")
