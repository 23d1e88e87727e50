"""One damaged model through the compiler: out comes a model that runs, or one line that says what is wrong."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from onnx.numpy_helper import to_array

import dlc
from dlc.cli.main import main
from dlc.errors import DlcError
from tests.fuzz.differential import Finding

# A message that shows the name of an exception is one that nobody wrote.
_UNWRITTEN = re.compile(
    r"\b(TypeError|KeyError|IndexError|AttributeError|AssertionError|RecursionError|ZeroDivisionError|OverflowError"
    r"|UnboundLocalError|MemoryError|InternalError|ValueError|SystemError|StopIteration|RuntimeError)\b"
)
_MOST = 1 << 22  # elements of an input that is made up
_MANY = 100_000  # iterations of a loop


def _refusal(text: str) -> Finding | None:
    """What is wrong with a message."""
    if "\n" in text or not text.strip():
        return Finding("message lines", f"the message has several lines, or none: {text!r}")
    if _UNWRITTEN.search(text):
        return Finding(f"message {_UNWRITTEN.search(text)[1]}", f"the message shows an exception: {text}")  # type: ignore[index]
    return None


def _inputs(session: dlc.Session, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
    made = {}
    for info in session.inputs:
        shape = [d if isinstance(d, int) else 2 for d in info.shape]
        if not info.dtype[0].isalpha() or info.dtype.startswith("object") or np.prod(shape, dtype=float) > _MOST:
            return None
        made[info.name] = np.asarray(rng.integers(0, 3, shape)).astype(info.dtype)
    return made


def _endless(graph: onnx.GraphProto) -> bool:
    """Whether a damaged number may have become the trip count of a Loop, which takes its time then in any runtime."""
    if not any(node.op_type == "Loop" for node in graph.node):
        return False
    used = {name for node in graph.node for name in node.input}  # others may be of any length
    tensors = [t for t in graph.initializer if t.name in used]
    tensors += [a.t for node in graph.node for a in node.attribute if a.name == "value"]
    here = (t for t in tensors if t.data_type == TensorProto.INT64 and t.data_location != TensorProto.EXTERNAL)
    return any((to_array(t) > _MANY).any() for t in here)


def _run(path: Path, target: str, rng: np.random.Generator) -> Finding | None:
    stage = "compile"
    try:
        package = dlc.compile(path, target=target)
        stage = "load"
        saved = path.with_suffix(".dlc")
        package.save(saved)
        session = dlc.load(saved)
        stage = "run"
        inputs = _inputs(session, rng)
        if inputs is not None and not _endless(onnx.load(path, load_external_data=False).graph):
            session.run(inputs)
    except DlcError as error:
        return _refusal(str(error))
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        return Finding(f"{target} {stage} {type(error).__name__}", f"{target}, {stage}: {type(error).__name__}: {text}")
    return None


def _command(path: Path) -> Finding | None:
    """The command line: its exit code, its one line, and no file that is half written."""
    output = path.with_name("command.dlc")
    output.unlink(missing_ok=True)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(["compile", str(path), "-o", str(output), "--target", "reference"])
        except SystemExit as exit_:
            code = exit_.code
        except Exception as error:
            return Finding(f"command {type(error).__name__}", f"command line: {type(error).__name__}: {error}")
    text = errors.getvalue()
    if code in (0, None):
        return None if output.is_file() else Finding("command no file", "the command succeeded without a file")
    if code != 2 or not text.startswith("dlc: error:") or text.count("\n") != 1:
        return Finding("command message", f"exit code {code} with {text!r}")
    left = [p.name for p in path.parent.iterdir() if p.name.startswith("command")]
    return Finding("command file", f"the command failed and left {left}") if left else None


def check(data: bytes, folder: Path, seed: int) -> Finding | None:
    """What is wrong with how a model of these bytes is treated; `folder` is for scratch files."""
    rng = np.random.default_rng([seed, 2])
    path = folder / "model.onnx"
    path.write_bytes(data)
    (folder / "here.bin").write_bytes(b"\x01" * 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = _run(path, "cpu" if rng.random() < 0.3 else "reference", rng)
        return found if found is not None or rng.random() < 0.85 else _command(path)
