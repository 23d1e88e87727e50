"""The ONNX front end: `import_model` turns a model into an IRModule of Relax with our operators.

A converter is one small function an operator, in a file by family; see `registry`. Importing this package registers
all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dlc.errors import DlcError
from dlc.frontends.onnx import (  # noqa: F401  (each registers its converters)
    activation,
    backoff,
    control,
    convolution,
    einsum,
    elementwise,
    indexing,
    linear,
    ngrams,
    normalisation,
    placing,
    pooling,
    quantisation,
    random_numbers,
    recurrent,
    reduction,
    resize,
    sampling,
    shape,
    slicing,
    spectral,
    trie,
    vendor_experts,
    vendor_fused,
    vendor_quantised,
    vendor_recurrent,
)
from dlc.frontends.onnx.functions import FUNCTION_MATCHERS, inventory
from dlc.frontends.onnx.importer import import_graph
from dlc.frontends.onnx.load import check, parse, read_external
from dlc.frontends.onnx.registry import converter, supported

__all__ = ["FUNCTION_MATCHERS", "converter", "import_model", "import_node", "supported"]


def import_model(
    model: str | Path | onnx.ModelProto,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    ranges: Mapping[str, tuple[int, int]] | None = None,
) -> Any:
    """Import an ONNX model as an IRModule with one function, ``main``.

    Its parameters are the model's inputs, its attributes ``dlc.inputs`` and ``dlc.outputs`` the ONNX names in order.
    Named dimensions become one symbol a name, and a symbol stands for an extent of at least 1. Where the model works
    only up to some size (a table of 512 positions is cut to the sequence's length), ``dlc.limits`` has it by the
    symbol's name.

    Args:
        model: a path, or a parsed model (whose external data, if any, is already read).
        shapes: extents by input name, ints or names of symbols, instead of those in the model.
        ranges: the least and the largest size of symbols, for a module of certain sizes only. Extents are then assumed
            to be equal where else one would have to be 1; ``dlc.equal`` has them.

    Returns:
        The module. Every operator call carries the ONNX operator, node and value that it came from.

    Raises:
        DlcError: for whatever is wrong with the model or the shapes, or not supported; one line that names the file
            and, where there is one, the node and the operator.
    """
    loaded = parse(model)
    try:
        missing = inventory(loaded.proto).text()
        if missing:
            raise DlcError(f"{loaded.name}: operators that are not supported: {missing}")
        check(loaded)
        return import_graph(loaded, read_external(loaded), shapes, ranges)
    except DlcError:
        raise
    except Exception as error:
        # No input may end in a traceback; what lands here deserves a better message where it comes from.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DlcError(f"{loaded.name}: cannot be imported: {reason}") from error


def import_node(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], known: Mapping[str, np.ndarray]) -> Any:
    """Import a model of one node, which has been checked, for the inputs of one run.

    Args:
        model: see `dlc.frontends.onnx.host`; changed.
        shapes: of the inputs.
        known: the inputs that are constants this time.

    Raises:
        DlcError: the node cannot take them.
    """
    kept = [value for value in model.graph.input if value.name not in known]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    try:
        return import_graph(parse(model), known, shapes)
    except DlcError as error:
        raise DlcError(str(error).removeprefix("model: ")) from error
