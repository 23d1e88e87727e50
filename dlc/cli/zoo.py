"""``dlc zoo``: list, train, evaluate and export the models of the zoo.

torch is imported only by the verbs that train or convert, so the rest works without it.
"""

from __future__ import annotations

import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from dlc import zoo as models
from dlc.errors import DlcError

_PATH = click.Path(path_type=Path)
_data_option = click.option(
    "--data", "data_dir", type=_PATH, help="Folder of the full data set (default: found, see the family's data module)."
)


@click.group()
def zoo() -> None:
    """Small trained models for tests and benchmarks; `zoo:NAME` stands for one wherever an ONNX file is taken."""


@zoo.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the models with their metric and measured figure."""
    cards = [models.read_card(name) for name in models.FAMILIES]
    if as_json:
        click.echo(json.dumps(cards, indent=2))
        return
    for card in cards:
        click.echo(f"{card['name']}: {card['task']}; {card['metric']}: {card['value']:.2%}")


@zoo.command()
@click.argument("name")
@click.option("--quick", is_flag=True, help="A trial: two epochs of a twentieth of the data.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the data.")
@click.option("--seed", type=click.IntRange(0), help="Seed of weights, order and augmentation.")
@click.option("--out", type=_PATH, help="The ONNX file to write (default: in the cache directory).")
@_data_option
def train(
    name: str, quick: bool, epochs: int | None, seed: int | None, out: Path | None, data_dir: Path | None
) -> None:
    """Train NAME and export it to ONNX, with the weights beside it as .safetensors.

    An interrupted run goes on where it was when the same command is given again.
    """
    training = _torch_module(name, "train")
    exporting = _torch_module(name, "export")
    data = _module(name, "data")
    config = training.TrainConfig()
    if quick:
        config = config.quick()
    given = {key: value for key, value in (("epochs", epochs), ("seed", seed)) if value is not None}
    config = replace(config, **given)
    out = out or data.cache_dir() / name / f"{name}.onnx"
    images, labels = data.load_full("train", data_dir)
    if training.checkpoint_path(config).is_file():
        click.echo("resuming the interrupted run")

    def show(result: Any) -> None:
        done = len(result.losses)
        click.echo(
            f"epoch {done}/{config.epochs}: loss {result.losses[-1]:.4f}, held-out accuracy {result.held_out[-1]:.2%}"
        )

    try:
        result = training.train(config, images, labels, progress=True, on_epoch=show)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on after the last whole epoch", err=True)
        raise click.Abort from None
    weights = out.with_suffix(".safetensors")
    training.save_weights(result, weights)
    difference = exporting.export(result.model, out)
    click.echo(f"trained in {result.seconds:.0f} s; torch and ONNX agree to {difference:.1e}")
    click.echo(f"wrote {weights} and {out}")


@zoo.command("eval")
@click.argument("name")
@click.option("--package", type=_PATH, help="Evaluate this compiled package instead of the committed ONNX.")
@click.option("--onnx", "onnx_path", type=_PATH, help="Evaluate this ONNX file instead of the committed one.")
@click.option("--full", is_flag=True, help="Use the full test set; by default the embedded excerpt.")
@_data_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def eval_(
    name: str, package: Path | None, onnx_path: Path | None, full: bool, data_dir: Path | None, as_json: bool
) -> None:
    """Measure NAME's metric, of the committed ONNX or of a compiled package."""
    if package and onnx_path:
        raise DlcError("--package and --onnx exclude each other")
    evaluate = _module(name, "evaluate")
    model = package or onnx_path or models.model_path(name)
    if not model.exists():
        raise DlcError(f"{model} does not exist")
    images, labels = evaluate.load_test_set(full or data_dir is not None, data_dir)
    predict = evaluate.package_predictor(model) if package else evaluate.onnx_predictor(model)
    score = evaluate.accuracy(predict, images, labels)
    if as_json:
        record = {
            "name": name,
            "model": str(model),
            "metric": "top-1 accuracy",
            "value": score.value,
            "correct": score.correct,
            "count": score.count,
            "seconds": score.seconds,
        }
        click.echo(json.dumps(record, indent=2))
        return
    click.echo(
        f"{name}: top-1 accuracy {score.value:.2%} ({score.correct} of {score.count} images, {score.seconds:.1f} s)"
    )


@zoo.command()
@click.argument("name")
@click.option("-o", "--out", type=_PATH, required=True, help="The ONNX file to write.")
@click.option("--weights", type=_PATH, help="Convert these trained weights (.safetensors) instead; needs torch.")
def export(name: str, out: Path, weights: Path | None) -> None:
    """Write NAME as ONNX: the committed model, or trained weights converted from torch."""
    if weights is None:
        committed = models.model_path(name)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(committed, out)
    else:
        training = _torch_module(name, "train")
        exporting = _torch_module(name, "export")
        if not weights.is_file():
            raise DlcError(f"{weights} does not exist")
        exporting.export(training.load_weights(weights), out)
    click.echo(f"wrote {out}")


def _module(name: str, part: str) -> ModuleType:
    """Import one module of the family `name`; DlcError where there is no such family."""
    return importlib.import_module(f"{models.family_package(name)}.{part}")


def _torch_module(name: str, part: str) -> ModuleType:
    """Import a module that needs torch; DlcError with what to install where it is missing."""
    try:
        return _module(name, part)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "torch":
            raise DlcError(f"training or converting {name!r} needs torch: pip install 'dlc[zoo]'") from error
        raise
