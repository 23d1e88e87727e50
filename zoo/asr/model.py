"""The network: LSTMs over stacked log-mel frames, and the logits of CTC's labels.

Graves, Fernandez, Gomez and Schmidhuber, "Connectionist Temporal Classification" (ICML 2006); Graves, Mohamed and
Hinton, "Speech Recognition with Deep Recurrent Neural Networks" (ICASSP 2013).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dlc.zoo.asr.features import WIDTH
from dlc.zoo.asr.text import ALPHABET


@dataclass(frozen=True)
class Shape:
    """The extents of a network.

    Attributes:
        layers: LSTM layers, each in both directions.
        hidden: units of a direction of a layer.
        dropout: on what lies between two layers and before the logits, while it is trained.
    """

    layers: int = 3
    hidden: int = 128
    dropout: float = 0.1


#: The committed network, and the student that it teaches.
SHAPES = {"teacher": Shape(), "student": Shape(layers=1, hidden=64, dropout=0.0)}


class Recogniser(nn.Module):
    """Logits of the labels at every step, from the frames before and behind."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.lstm = nn.LSTM(
            WIDTH, shape.hidden, shape.layers, batch_first=True, bidirectional=True,
            dropout=shape.dropout if shape.layers > 1 else 0.0,
        )  # fmt: skip
        self.dropout = nn.Dropout(shape.dropout)
        self.out = nn.Linear(2 * shape.hidden, len(ALPHABET))
        for name, bias in self.lstm.named_parameters():
            if name.startswith("bias_ih"):  # the forget gates begin open (Jozefowicz et al. 2015)
                nn.init.ones_(bias.detach()[shape.hidden : 2 * shape.hidden])

    def forward(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Map inputs (N, T, `WIDTH`), as `features.inputs` gives them, to logits (N, T, labels).

        `lengths` (N,) on the CPU are the steps of each utterance, where they are not all of T; what comes behind them
        has no influence.
        """
        if lengths is None:
            return self.out(self.dropout(self.lstm(x)[0]))
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        h, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.out(self.dropout(h))


def build(size: str) -> Recogniser:
    """The network of a size: see `SHAPES`."""
    return Recogniser(SHAPES[size])
