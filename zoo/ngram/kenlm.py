"""Comparison with KenLM, the standard tool: its ``lmplz`` estimates a model from the same text.

KenLM (Heafield et al., "Scalable Modified Kneser-Ney Language Model Estimation", ACL 2013) is built from the source
distribution that PyPI has of it; ``lmplz`` must be on the PATH.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlc.errors import DlcError
from dlc.zoo.ngram.arpa import MARKS, read_arpa
from dlc.zoo.ngram.counts import count
from dlc.zoo.ngram.data import Corpus
from dlc.zoo.ngram.smoothing import kneser_ney

_PROGRAM = "lmplz"


@dataclass(frozen=True)
class Agreement:
    """How many n-grams both list, and the largest difference of a log10 probability or back-off weight."""

    ngrams: int
    difference: float


def available() -> bool:
    """Whether `compare` can run."""
    return shutil.which(_PROGRAM) is not None


def compare(corpus: Corpus, ids: NDArray[np.int32], order: int) -> Agreement:
    """Estimate a model of the stream `ids` by KenLM and by `kneser_ney`, and compare every entry of the two.

    KenLM takes the stream for one sentence, so both models have its marks; the merged rare words are spelled
    ``<rare>``, since KenLM keeps ``<unk>`` for words that do not occur.

    Raises:
        DlcError: KenLM fails, or lists other n-grams.
    """
    present = np.unique(ids)
    words = tuple("<rare>" if number == 0 else corpus.words[number] for number in present)
    numbers = np.searchsorted(present, ids)
    with tempfile.TemporaryDirectory() as folder:
        text, arpa = Path(folder) / "text", Path(folder) / "arpa"
        text.write_text(" ".join(words[number] for number in numbers) + "\n", encoding="utf-8")
        command = [_PROGRAM, "-o", str(order), "-S", "1G", "-T", folder, "--text", str(text), "--arpa", str(arpa)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DlcError(f"{_PROGRAM} failed: {(done.stderr.strip().splitlines() or ['it says nothing'])[-1]}")
        vocabulary = (*words, *MARKS, "<unk>")
        theirs, _ = read_arpa(arpa, vocabulary)
    start = len(words)
    marked = np.concatenate([[start], numbers, [start + 1]])
    ours = kneser_ney(count([marked], len(vocabulary), order, start))
    if [len(x) for x in ours.log10] != [len(x) for x in theirs.log10]:
        raise DlcError(f"{_PROGRAM} lists other n-grams of this text")
    predictable = np.arange(len(vocabulary)) != start  # KenLM gives the start mark 1, and never looks
    pairs = [(ours.log10[0][predictable], theirs.log10[0][predictable])]
    pairs += zip((*ours.log10[1:], *ours.backoff), (*theirs.log10[1:], *theirs.backoff), strict=True)
    difference = max(float(np.abs(a - b).max()) for a, b in pairs)
    return Agreement(sum(len(x) for x in ours.log10), difference)
