"""What several verbs share: options, input files, progress."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from dlc.cli.main import set_verbose
from dlc.errors import DlcError
from dlc.runtime.files import atomic_write, check_writable
from dlc.runtime.session import TensorInfo

PATH = click.Path(path_type=Path)
_QUIET_SECONDS = 1.0  # shorter work needs no progress bar
_log = logging.getLogger("dlc")

verbose_option = click.option(
    "-v", "--verbose", is_flag=True, expose_value=False, callback=set_verbose, help="Print tracebacks and a log."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
threads_option = click.option("--threads", type=int, default=1, show_default=True, help="Threads of one run.")
seed_option = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of random inputs.")
target_option = click.option("--target", default="cpu", show_default=True, help="What to compile for: `dlc targets`.")
calibration_option = click.option(
    "--calibration", metavar="F", help="An .npz file or a folder of them, zoo:NAME, random, or random:SEED."
)
method_option = click.option(
    "--calibration-method", default="minmax", show_default=True, help="minmax, percentile or mse."
)
arithmetic_option = click.option(
    "--arithmetic", default="float", show_default=True, help="Rescaling of integers: float, fixed or shift."
)


# --- shapes ----------------------------------------------------------------------------------------------------------

Shape = tuple[int | str, ...]
Shapes = dict[str, Shape]


def _parse_several(ctx: click.Context, option: click.Parameter, texts: Sequence[str]) -> dict[str, list[Shape]]:
    shapes: dict[str, list[Shape]] = {}
    for text in texts:
        name, equals, dims = text.rpartition("=")
        if not equals or not name:
            raise DlcError(f"--shape '{text}': expected NAME=EXTENTS, as in x=1,3,224,224")
        shape = tuple(_parse_extent(text, dim.strip()) for dim in dims.split(",")) if dims.strip() else ()
        shapes.setdefault(name, []).append(shape)
    return shapes


def _parse_shapes(ctx: click.Context, option: click.Parameter, texts: Sequence[str]) -> Shapes:
    several = _parse_several(ctx, option, texts)
    for name, given in several.items():
        if len(given) > 1:
            raise DlcError(f"--shape: input '{name}' is given twice")
    return {name: given[0] for name, given in several.items()}


def _parse_extent(text: str, dim: str) -> int | str:
    if dim.isdigit() and int(dim) > 0:
        return int(dim)
    if dim.isidentifier():
        return dim
    raise DlcError(f"--shape '{text}': extent '{dim}' is neither a positive number nor a name")


shape_option = click.option(
    "--shape", "shapes", multiple=True, metavar="NAME=1,3,224,224", callback=_parse_shapes,
    help="Extents of an input; repeat for several inputs.",
)  # fmt: skip
shapes_option = click.option(
    "--shape", "shapes", multiple=True, metavar="NAME=1,3,224,224", callback=_parse_several,
    help="Extents of an input; repeat for several inputs, or for several shapes of one, each with code of its own.",
)  # fmt: skip


# --- arrays ----------------------------------------------------------------------------------------------------------


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, or ``zoo:NAME``'s test inputs; DlcError where it is neither."""
    if str(path).startswith("zoo:"):
        from dlc.zoo import samples

        return samples(str(path).removeprefix("zoo:"), "test")
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise DlcError(f"{path}: not an .npz file: it holds one array without a name")
        with found:
            return {name: found[name] for name in found.files}
    except OSError as error:
        raise DlcError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise DlcError(f"{path}: not an .npz file: {error}") from error


def input_sets(path: Path, inputs: Sequence[TensorInfo]) -> list[tuple[str, dict[str, np.ndarray]]]:
    """(file name, arrays) of an .npz file, or of every one in a folder.

    The test inputs of ``zoo:NAME`` are one set where the batch of `inputs` is symbolic, else one a batch.
    """
    if str(path).startswith("zoo:") and any(isinstance(extent, int) for info in inputs for extent in info.shape[:1]):
        from dlc.calibration import cut

        return [(f"{number:03}.npz", arrays) for number, arrays in enumerate(cut(load_npz(path), inputs))]
    if not path.is_dir():
        return [(path.name, load_npz(path))]
    files = sorted(path.glob("*.npz"))
    if not files:
        raise DlcError(f"{path}: the folder holds no .npz file")
    return [(file.name, load_npz(file)) for file in files]


def save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz whole or not at all; any array name will do, and the same arrays give the same bytes."""
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


# --- output ----------------------------------------------------------------------------------------------------------


def writable(ctx: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """The callback of ``-o``: says before the work that the file cannot be written."""
    if path is not None:
        check_writable(path)
    return path


def size_text(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for work over a second, on a terminal only; gives the callback (stage, done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[stage]}"), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(title, total=None, stage="")
    timer = threading.Timer(_QUIET_SECONDS, bar.start)
    timer.daemon = True
    started, current = time.perf_counter(), ""

    def update(stage: str, done: int, total: int) -> None:
        nonlocal current
        if stage != current:
            current = stage
            _log.info("%.2f s: %s", time.perf_counter() - started, stage)
        bar.update(task, stage=stage, completed=done, total=total or None)

    if console.is_terminal:
        timer.start()
    try:
        yield update
    finally:
        timer.cancel()
        if timer.is_alive():
            timer.join()
        if bar.live.is_started:  # stopping one that never started would print an empty line
            bar.stop()
        sys.stderr.flush()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout, as wide as the terminal; plain text where there is none."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False, file=sys.stdout)
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    console.print(table)
