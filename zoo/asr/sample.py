"""What the model hears: embedded utterances, or a text spoken by one of eSpeak's voices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dlc.zoo.asr import data, features, text, voices
from dlc.zoo.asr.decoding import Beam, CharacterModel, greedy
from dlc.zoo.asr.inference import logits_of
from dlc.zoo.family import SampleOptions
from dlc.zoo.models import Model

_VOICE = "espeak:en+f5"  # of the test part


def sample(model: Model, options: SampleOptions) -> Iterator[str]:
    """Yield the text, the best path and the beam search's sentence of ``options.count`` embedded test utterances.

    A prompt, of words of a-z, is spoken by eSpeak NG instead.

    Raises:
        DlcError: the prompt has other characters, or eSpeak NG is missing.
    """
    if options.prompt:
        text.encode(options.prompt)
        generator = np.random.default_rng(options.seed)
        samples = voices.speak(options.prompt, voices.Speaker(_VOICE), options.seed)
        chosen = [(options.prompt, _VOICE, features.log_mel(data.add_noise(samples, 30.0, generator)))]
    else:
        test = data.load_excerpt("test")
        order = np.random.default_rng(options.seed).permutation(len(test))[: options.count]
        chosen = [(test.texts[k], test.voices[k], test.frames[k]) for k in order]
    beam = Beam(CharacterModel.of(data.transcripts()))
    for sentence, voice, frames in chosen:
        (logits,) = logits_of(model, [frames])
        yield f"{sentence}  ({voice})\n  best path: {greedy(logits)}\n  beam:      {beam.search(logits)}"
