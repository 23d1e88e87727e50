"""Speech from WaveNet: the whole generation is one native loop, compiled from the model's weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.zoo import model_path
from dlc.zoo.family import SampleOptions
from dlc.zoo.models import Model
from dlc.zoo.wavenet import data, graphs

_SECONDS = 2.0  # of each sample that no prompt decides


def sample(model: Model, options: SampleOptions) -> Iterator[str]:
    """Generate ``options.count`` samples and write them one after the other to ``options.out``, a WAV file.

    Without a prompt the model speaks as it likes. A prompt is the name of a recording, whose mel frames the
    conditioned model speaks again; where the model given is not conditioned, the committed one that is.

    Raises:
        DlcError: no file to write to, a compiled package or another model is given, or there is no such recording.
    """
    if options.out is None:
        raise DlcError("sampling 'wavenet' writes a WAV file: give --out FILE.wav")
    if model.path.suffix != ".onnx":
        raise DlcError(
            f"the generation is compiled from the weights of an ONNX file, not from {model.path}: use --onnx"
        )
    path, mel = model.path, None
    if options.prompt:
        mel = data.mel_frames(data.load_prompt(options.prompt))
        path = path if data.MEL_INPUT in model.inputs else conditioned_path()
    elif data.MEL_INPUT in model.inputs:
        raise DlcError(f"{path} speaks from mel frames: give --prompt NAME, the name of a recording")
    time_steps = int(_SECONDS * data.RATE) if mel is None else mel.shape[1] * data.HOP
    session = load_generator(path)
    generator = np.random.default_rng(options.seed)
    parts = []
    for number in range(options.count):
        start = time.perf_counter()
        codes = generate(session, generator.random(time_steps, np.float32), mel)
        seconds = time.perf_counter() - start
        parts.append(data.decode(codes))
        rate = time_steps / seconds
        yield (
            f"sample {number + 1}: {time_steps / data.RATE:.2f} s of speech in {seconds:.2f} s, {rate:,.0f} samples/s, "
            f"{rate / data.RATE:.1f} times real time on one core"
        )
    data.write_wav(options.out, np.concatenate(parts))
    yield f"wrote {options.out}"


def conditioned_path() -> Path:
    """The committed model that is conditioned on mel frames."""
    return model_path("wavenet").with_name("mel.onnx")


def load_generator(path: Path) -> Any:
    """A session on one thread of the generation loop of the ONNX model at `path`.

    Raises:
        DlcError: it is no WaveNet of this family.
    """
    import dlc

    return dlc.load(dlc.compile(graphs.generator(*graphs.read_likelihood(path))), threads=1)


def generate(session: Any, uniform: np.ndarray, mel: np.ndarray | None) -> np.ndarray:
    """Draw codes by `uniform` float32 (time,): int64 (time,)."""
    feed = {graphs.UNIFORM: uniform}
    if mel is not None:
        feed[data.MEL_INPUT] = mel
    return np.asarray(session.run(feed)[graphs.SAMPLES]).reshape(-1)
