"""The torch front end: a module is exported to ONNX and takes the same road as any other model.

torch is imported only here and only when a function is called; the rest of the compiler does without it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from dlc.errors import DlcError
from dlc.frontends.onnx import import_model

OPSET = 20


def _torch() -> Any:
    try:
        import torch
        import torch.onnx
    except ImportError as error:
        raise DlcError(f"exporting a module needs torch (pip install 'dlc[zoo]'): {error}") from error
    return torch


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports progress on standard output and warns about its own internals: neither is for our user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _dynamic(
    inputs: tuple[Any, ...], names: Sequence[str] | None, axes: Mapping[str, Mapping[int, str]] | None
) -> tuple[Any, ...] | None:
    """Dynamic axes by input name as one entry an input, which is how torch's exporter wants them."""
    if not axes:
        return None
    if names is None or len(names) < len(inputs):
        raise DlcError("dynamic_axes go by input name, so input_names must name every input")
    unknown = sorted(set(axes) - set(names[: len(inputs)]))
    if unknown:
        raise DlcError(f"dynamic_axes name '{unknown[0]}', which is not one of the inputs {list(names[: len(inputs)])}")
    return tuple(dict(axes[name]) if name in axes else None for name in names[: len(inputs)])


def export_module(
    module: Any,
    example_inputs: Any,
    path: str | Path | None = None,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Export a torch module to ONNX, in evaluation mode, weights inside the model.

    Args:
        module: a `torch.nn.Module`; its training mode is restored afterwards.
        example_inputs: a tensor, or a tuple of them, of the shapes to export.
        path: where to save the model as well; nothing is left there when the export fails.
        input_names: ONNX names of the inputs, in order.
        output_names: ONNX names of the outputs, in order.
        dynamic_axes: symbolic dimensions: by input name, the name of the symbol by axis.
        opset: the ONNX operator set.

    Returns:
        The model.

    Raises:
        DlcError: when torch is missing, cannot export the module, or the path cannot be written.
    """
    torch = _torch()
    inputs = tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)
    shapes = _dynamic(inputs, input_names, dynamic_axes)
    training = bool(getattr(module, "training", False))
    try:
        module.eval()
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                input_names=list(input_names) if input_names else None,
                output_names=list(output_names) if output_names else None,
                dynamic_shapes=shapes,
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
        proto: onnx.ModelProto = program.model_proto
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise DlcError(f"torch cannot export {type(module).__name__} to ONNX: {reason}") from error
    finally:
        if hasattr(module, "train"):
            module.train(training)
    if path is not None:
        _save(proto, Path(path))
    return proto


def _save(proto: onnx.ModelProto, path: Path) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".onnx", delete=False) as file:
            partial = Path(file.name)
            file.write(proto.SerializeToString())
        partial.replace(path)
    except OSError as error:
        raise DlcError(f"{path}: cannot write the model: {error.strerror or error}") from error


def import_module(
    module: Any,
    example_inputs: Any,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
) -> Any:
    """Import a torch module: `export_module`, then `dlc.frontends.onnx.import_model`; the arguments are theirs."""
    proto = export_module(
        module, example_inputs, input_names=input_names, output_names=output_names, dynamic_axes=dynamic_axes
    )
    return import_model(proto, shapes)
