"""The network: Bahdanau, Cho and Bengio, "Neural Machine Translation by Jointly Learning to Align and Translate", 2015.

A bidirectional GRU reads the source. A GRU writes the translation piece by piece; at each it reads a mean of the
encoder's states, weighted by what it attends to, or, without attention, both directions' last states each time (Cho et
al. 2014, arXiv:1406.1078). Source, target and the output layer share one embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import dropout, linear
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dlc.zoo.nmt.data import PAD, VOCABULARY

_LOW = -1e9  # the energy of what must not be attended to


@dataclass(frozen=True)
class Shape:
    """The network's size.

    Attributes:
        embedding: features of a piece.
        encoder: units of each direction.
        decoder: units.
        attention: units that compare the decoder's state with an annotation; 0 for no attention.
        dropout: of embeddings and of the output layer's input, in training.
    """

    embedding: int = 128
    encoder: int = 128
    decoder: int = 256
    attention: int = 128
    dropout: float = 0.2


class Translator(nn.Module):
    """Logits of each next piece of the translation from the source and the pieces before."""

    def __init__(self, shape: Shape = Shape()) -> None:  # noqa: B008
        super().__init__()
        self.shape = shape
        both = 2 * shape.encoder
        self.embedding = nn.Embedding(VOCABULARY, shape.embedding)
        self.bias = nn.Parameter(torch.zeros(VOCABULARY))
        self.encoder = nn.GRU(shape.embedding, shape.encoder, batch_first=True, bidirectional=True)
        self.start = nn.Linear(both, shape.decoder)
        self.cell = nn.GRUCell(shape.embedding + both, shape.decoder)
        self.readout = nn.Linear(shape.decoder + both + shape.embedding, shape.embedding)
        if shape.attention:
            self.keys = nn.Linear(both, shape.attention)
            self.query = nn.Linear(shape.decoder, shape.attention, bias=False)
            self.energy = nn.Linear(shape.attention, 1, bias=False)
        nn.init.normal_(self.embedding.weight, std=shape.embedding**-0.5)

    def forward(self, source: torch.Tensor, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map pieces to logits, and to where the decoder looked.

        Args:
            source: int64 (N, S), PAD behind the end of each.
            before: int64 (N, T), BOS and the pieces of the translation.

        Returns:
            Logits (N, T, vocabulary), and shares (N, T, S) where there is attention.
        """
        annotations, summary = self._encode(source)
        embedded = self._drop(self.embedding(before))
        state = torch.tanh(self.start(summary))
        contexts, states, looks = [], [], []
        width = self.shape.embedding
        given = linear(embedded, self.cell.weight_ih[:, :width], self.cell.bias_ih)
        keys = self.keys(annotations) if self.shape.attention else None
        mask = ((source == PAD) * _LOW) if self.shape.attention else None
        context = summary
        for t in range(before.shape[1]):
            if keys is not None:
                mixed = torch.tanh(keys + self.query(state)[:, None])
                look = torch.softmax(self.energy(mixed)[..., 0] + mask, 1)
                context = torch.bmm(look[:, None], annotations)[:, 0]
                looks.append(look)
            state = self._cell(given[:, t] + linear(context, self.cell.weight_ih[:, width:]), state)
            contexts.append(context)
            states.append(state)
        features = torch.cat([torch.stack(states, 1), torch.stack(contexts, 1), embedded], 2)
        hidden = torch.tanh(self.readout(self._drop(features)))
        return linear(self._drop(hidden), self.embedding.weight, self.bias), torch.stack(looks, 1) if looks else None

    def _encode(self, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The annotations (N, S, 2 encoder) and both directions' last states (N, 2 encoder)."""
        lengths = (source != PAD).sum(1).cpu()
        packed = pack_padded_sequence(self._drop(self.embedding(source)), lengths, True, enforce_sorted=False)
        outputs, last = self.encoder(packed)
        annotations, _ = pad_packed_sequence(outputs, True, total_length=source.shape[1])
        return annotations, torch.cat([last[0], last[1]], 1)

    def _cell(self, given: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """The next state; `given` is the product with the input and its bias."""
        kept = linear(state, self.cell.weight_hh, self.cell.bias_hh)
        (gr, gz, gn), (kr, kz, kn) = given.chunk(3, 1), kept.chunk(3, 1)
        fresh = torch.tanh(gn + torch.sigmoid(gr + kr) * kn)
        return torch.lerp(fresh, state, torch.sigmoid(gz + kz))

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return dropout(x, self.shape.dropout, self.training)


def build(size: str) -> Translator:
    """The network of a size: ``attention`` or ``plain``."""
    return Translator(Shape() if size == "attention" else Shape(attention=0))
