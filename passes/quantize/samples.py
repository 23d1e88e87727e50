"""Calibration data: random, from an .npz file, or from a folder of them.

An array is named after its input and has a leading sample axis. Where it has as many axes as the input, that axis is
the input's own batch axis and is cut into batches (of the input's extent, or a few at once where the extent is
symbolic; a rest smaller than a fixed extent is left out). Where it has one more, each entry is one whole input. All
arrays of a file are of one of these forms.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from dlc.errors import DlcError
from dlc.ir.graph import Graph, Value
from dlc.ir.interpret import evaluate_dim
from dlc.runtime.demands import Demands

RANDOM_SAMPLES = 8
#: The extent of a symbolic axis of random data; a symbol that some input has as its first axis is a batch and gets 1.
RANDOM_EXTENT = 32
#: Batches are cut so that an input has about this many elements: enough for numpy, small enough for large images.
_BATCH_ELEMENTS = 1 << 16
_LARGEST_BATCH = 32

Sample = dict[str, np.ndarray]


@dataclass(frozen=True)
class _File:
    """One checked file.

    Attributes:
        path: the file.
        dtypes: the dtype of each input, by name.
        batched: whether the leading axis is the inputs' own batch axis.
        starts: where each sample begins on the leading axis, and where the last ends.
    """

    path: Path
    dtypes: Mapping[str, str]
    batched: bool
    starts: Sequence[int]

    def samples(self) -> Iterator[Sample]:
        """Cut the arrays; one file is in memory at a time."""
        with np.load(self.path) as arrays:
            loaded = {name: arrays[name].astype(dtype, copy=False) for name, dtype in self.dtypes.items()}
        for begin, end in zip(self.starts, self.starts[1:], strict=False):
            yield {name: a[begin:end] if self.batched else a[begin] for name, a in loaded.items()}


class Samples:
    """Calibration samples with a known number; files are read one by one, each time they are iterated."""

    def __init__(self, ready: Sequence[Sample], files: Sequence[_File] = ()) -> None:
        self.ready, self.files = ready, files

    def __len__(self) -> int:
        return len(self.ready) + sum(len(file.starts) - 1 for file in self.files)

    def __iter__(self) -> Iterator[Sample]:
        yield from self.ready
        for file in self.files:
            yield from file.samples()


def calibration_samples(spec: str | Path, graph: Graph) -> Samples:
    """The samples that `spec` names: ``random``, ``random:SEED``, an .npz file or a folder of .npz files.

    Raises:
        DlcError: the file is missing or not an .npz, or an array is missing, unknown, of another shape or dtype.
    """
    text = str(spec)
    if text == "random" or text.startswith("random:"):
        seed = text.partition(":")[2] or "0"
        if not seed.isdigit():
            raise DlcError(f"calibration '{text}': the seed must be a whole number, as in random:7")
        return Samples(random_samples(graph, int(seed)))
    path = Path(spec)
    if not path.exists():
        raise DlcError(f"calibration '{path}': no such file or folder")
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files:
        raise DlcError(f"calibration '{path}': the folder holds no .npz file")
    return Samples([], [_check_file(file, graph.inputs) for file in files])


# --- files -----------------------------------------------------------------------------------------------------------


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of every array, without reading the arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = {}
            for name in archive.namelist():
                with archive.open(name) as stream:
                    found[name.removesuffix(".npy")] = _header(stream)
            return found
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise DlcError(f"calibration '{path}': not a readable .npz file ({error})") from None


def _text(shape: Sequence[Any]) -> str:
    return "[" + ", ".join(str(d) for d in shape) + "]"


def _fits(shape: Sequence[int], expected: Sequence[Any]) -> bool:
    return len(shape) == len(expected) and all(
        not isinstance(d, int) or d == n for n, d in zip(shape, expected, strict=True)
    )


def _check_array(path: Path, value: Value, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether the array is batched; DlcError where it does not belong to the input."""
    wanted = np.dtype(value.dtype)
    if dtype.kind != wanted.kind or not np.can_cast(dtype, wanted, "same_kind"):
        raise DlcError(f"calibration '{path}': array '{value.name}' is {dtype}, but the input is {wanted}")
    if value.shape and _fits(shape[1:], value.shape[1:]):
        return True
    if shape and _fits(shape[1:], value.shape):
        return False
    raise DlcError(
        f"calibration '{path}': array '{value.name}' has shape {_text(shape)}, but the input has shape "
        f"{_text(value.shape)}: expected that with a leading sample axis, or with samples along its first axis"
    )


def _check_file(path: Path, inputs: Sequence[Value]) -> _File:
    headers = _headers(path)
    names = [value.name for value in inputs]
    for name in names:
        if name not in headers:
            raise DlcError(f"calibration '{path}': no array for input '{name}'; it has {', '.join(headers) or 'none'}")
    for name in headers:
        if name not in names:
            raise DlcError(f"calibration '{path}': array '{name}' is no input; the inputs are {', '.join(names)}")
    forms = {value.name: _check_array(path, value, *headers[value.name]) for value in inputs}
    if len(set(forms.values())) > 1:
        raise DlcError(f"calibration '{path}': some arrays have an extra sample axis and others do not")
    counts = {name: headers[name][0][0] for name in names}
    if len(set(counts.values())) > 1:
        raise DlcError(f"calibration '{path}': the arrays hold different numbers of samples: {counts}")
    entries = next(iter(counts.values()))
    batched = next(iter(forms.values()))
    starts = _cuts(path, inputs, entries) if batched else range(entries + 1)
    return _File(path, {value.name: value.dtype for value in inputs}, batched, starts)


def _cuts(path: Path, inputs: Sequence[Value], entries: int) -> Sequence[int]:
    """Where to cut the batch axis."""
    fixed = {value.shape[0] for value in inputs if isinstance(value.shape[0], int)}
    if fixed:
        batch = max(fixed)
        if entries < batch or len(fixed) > 1:
            raise DlcError(f"calibration '{path}': {entries} samples do not fill the inputs' batch of {batch}")
        return range(0, entries - entries % batch + 1, batch)
    elements = max(int(np.prod([d for d in value.shape[1:] if isinstance(d, int)])) for value in inputs)
    batch = min(max(_BATCH_ELEMENTS // max(elements, 1), 1), _LARGEST_BATCH)
    return [*range(0, entries, batch), entries]


# --- random ----------------------------------------------------------------------------------------------------------


def _index_limit(graph: Graph, name: str) -> int:
    """A sensible bound for a random integer input: the extent that it indexes, else 2 (a mask, a token type)."""
    values, consumers = graph.values(), graph.consumers()
    pending, seen, limit = [name], set(), 0
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        for node in consumers[current]:
            if node.op in ("relax.take", "relax.gather_elements") and node.inputs[1] == current:
                extent = values[node.inputs[0]].shape[node.attrs["axis"]]
                if isinstance(extent, int):
                    limit = min(limit or extent, extent)
            elif node.outputs[0].dtype.startswith(("int", "uint")):
                pending.append(node.outputs[0].name)
    return max(limit, 1) if limit else 2


def random_samples(graph: Graph, seed: int, count: int = RANDOM_SAMPLES) -> list[Sample]:
    """Standard normal floats; integers uniform over what they index, else 0 or 1; the same for the same seed."""
    generator = np.random.default_rng(seed)
    batches = {str(value.shape[0]) for value in graph.inputs if value.shape and not isinstance(value.shape[0], int)}
    demands = Demands.of_graph(graph.attrs)
    symbols = {
        str(d): max(
            1 if str(d) in batches else min(RANDOM_EXTENT, demands.limits.get(str(d), RANDOM_EXTENT)),
            demands.least.get(str(d), 1),
        )
        for value in graph.inputs
        for d in value.shape
        if not isinstance(d, int) and str(d).isidentifier()
    }
    samples = []
    for _ in range(count):
        sample = {}
        for value in graph.inputs:
            shape = tuple(evaluate_dim(d, symbols) for d in value.shape)
            if np.dtype(value.dtype).kind in "iub":
                sample[value.name] = generator.integers(0, _index_limit(graph, value.name), shape).astype(value.dtype)
            else:
                sample[value.name] = generator.standard_normal(shape).astype(value.dtype)
        samples.append(sample)
    return samples
