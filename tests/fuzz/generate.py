"""Valid random ONNX models of a seed, each with inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from tests.fuzz import contractions, elementwise, movement, structured
from tests.fuzz.graph import FLOATS, Graph, RejectedError, info, ir_of

OPSETS = range(7, 27)  # what onnxruntime takes
_PLAIN: dict[Callable[[Graph], None], int] = {
    **elementwise.GENERATORS, **movement.GENERATORS, **contractions.GENERATORS,
}  # fmt: skip
_DEEPEST = 2  # subgraphs inside subgraphs


@dataclass(frozen=True)
class Case:
    """A model and its inputs by name.

    Attributes:
        sizes: what the named dimensions are in `inputs`.
    """

    model: onnx.ModelProto
    inputs: dict[str, np.ndarray]
    sizes: Mapping[str, int]


def _depth(g: Graph) -> int:
    return 0 if g.parent is None else 1 + _depth(g.parent)


def _grow(g: Graph, count: int) -> None:
    """Add about `count` nodes."""
    nested = dict(structured.GENERATORS) if _depth(g) < _DEEPEST else {}
    table = {**{f: float(w) for f, w in _PLAIN.items()}, **{f: float(w) for f, w in nested.items()}}
    functions, weights = list(table), np.array(list(table.values()))
    before, tries = len(g.nodes), 0
    while len(g.nodes) - before < count and tries < 12 * count:
        tries += 1
        function = functions[int(g.rng.choice(len(functions), p=weights / weights.sum()))]
        try:
            if function in nested:
                function(g, _grow)
            else:
                function(g)
        except RejectedError:
            continue


def _outputs(g: Graph) -> list[str]:
    """What nothing reads, and now and then what something does."""
    from tests.fuzz.graph import reads

    used = {name for node in g.nodes for name in reads(node)}
    made = [name for node in g.nodes for name in node.output if name]
    found = [n for n in made if n not in used and not g.held[n].constant]
    found += [n for n in made if n in used and not g.held[n].constant and g.chance(0.1)]
    return found


def _dims(g: Graph) -> tuple[dict[str, list[int | str | None]], dict[str, int]]:
    """Declared extents of the inputs: numbers, names shared by equal extents, or nothing."""
    symbolic = g.chance(0.4)
    sizes: dict[str, int] = {}
    found: dict[str, list[int | str | None]] = {}
    for name, value in g.inputs.items():
        dims: list[int | str | None] = []
        for extent in value.shape:
            if not symbolic or name in g.fixed or extent < 2 or g.chance(0.3):
                dims.append(extent)
            elif g.chance(0.15):
                dims.append(None)
            else:
                dims.append(f"d{extent}")
                sizes[f"d{extent}"] = extent
        found[name] = dims
    return found, sizes


def generate(seed: int) -> Case:
    """The case of a seed."""
    rng = np.random.default_rng(seed)
    g = Graph(rng, int(rng.integers(OPSETS.start, OPSETS.stop)))
    for _ in range(g.between(1, 3)):
        dtype = g.one_of(["float32"] * 8 + [*FLOATS, "int64", "int32", "uint8", "int8", "bool", "uint32", "int16"])
        g.input(g.random(dtype, g.shape()))
    _grow(g, g.between(1, 9))
    outputs = _outputs(g)
    if not outputs:
        return generate(seed + (1 << 32))
    dims, sizes = _dims(g)
    made = helper.make_graph(
        g.nodes,
        "random",
        [info(n, v.array, dims[n]) for n, v in g.inputs.items()],
        [info(n, g.held[n].array, [None] * g.held[n].rank) for n in outputs],
        g.constants,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", g.opset)], ir_version=ir_of(g))
    return Case(model, {n: v.array for n, v in g.inputs.items()}, sizes)


def resized(case: Case, seed: int) -> Case | None:
    """The case with other sizes for its named dimensions, the inputs' content repeated or cut; None without names."""
    if not case.sizes:
        return None
    rng = np.random.default_rng(seed)
    sizes = {name: int(rng.choice([1, 2, size + 1, 2 * size, 13])) for name, size in case.sizes.items()}
    inputs = {}
    for value in case.model.graph.input:
        array = case.inputs[value.name]
        dims = zip(value.type.tensor_type.shape.dim, array.shape, strict=True)
        shape = tuple(sizes.get(d.dim_param, e) if d.dim_param else e for d, e in dims)
        inputs[value.name] = np.resize(array, shape) if shape != array.shape else array
    return Case(case.model, inputs, sizes)


def check(case: Case) -> None:
    """Hold a generated model to onnx's own checker."""
    onnx.checker.check_model(case.model)
