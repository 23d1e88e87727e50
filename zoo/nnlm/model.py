"""The networks: word embeddings, a feed-forward or recurrent body, and an output layer of `output.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dlc.zoo.nnlm import tree
from dlc.zoo.nnlm.data import CONTEXT
from dlc.zoo.nnlm.output import BinarySoftmax, ClassSoftmax, FullSoftmax, LossName, OutputLayer, ShortlistSoftmax

BodyName = Literal["feed-forward", "lstm"]
OutputName = Literal["full", "shortlist", "classes", "binary"]


@dataclass(frozen=True)
class Shape:
    """The network.

    Attributes:
        body: of the network.
        output: its output layer.
        loss: with which the output layer ``full`` is trained.
        width: of the embeddings and of the features.
        hidden: units of the hidden layer.
        dropout: share of the hidden units and of the features dropped in training.
        samples: noise words a batch, for the sampled losses.
        listed: words of the short list.
    """

    body: BodyName = "feed-forward"
    output: OutputName = "classes"
    loss: LossName = "full"
    width: int = 64
    hidden: int = 128
    dropout: float = 0.2
    samples: int = 500
    listed: int = 2000


class FeedForward(nn.Module):
    """One hidden layer over the concatenated embeddings of the words before (Bengio et al. 2003)."""

    def __init__(self, vocabulary: int, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, shape.width)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.hidden = nn.Linear(CONTEXT * shape.width, shape.hidden)
        self.features = nn.Linear(shape.hidden, shape.width)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, context: Tensor) -> Tensor:
        """Map int64 (N, CONTEXT) to features, float32 (N, width)."""
        x = self.embedding(context).flatten(1)
        return self.dropout(self.features(self.dropout(torch.relu(self.hidden(x)))))

    def multiply_adds(self) -> int:
        """Of one word."""
        return self.hidden.weight.numel() + self.features.weight.numel()


class Recurrent(nn.Module):
    """An LSTM over the stream (Hochreiter and Schmidhuber 1997); it goes on from call to call until `reset`."""

    def __init__(self, vocabulary: int, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, shape.width)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.lstm = nn.LSTM(shape.width, shape.hidden, batch_first=True)
        self.features = nn.Linear(shape.hidden, shape.width)
        self.dropout = nn.Dropout(shape.dropout)
        self.reset()

    def reset(self) -> None:
        """Forget what was read."""
        self._state: tuple[Tensor, Tensor] | None = None

    def forward(self, words: Tensor) -> Tensor:
        """Map int64 (streams, steps) to the features after each word, float32 (streams * steps, width)."""
        hidden, (h, c) = self.lstm(self.dropout(self.embedding(words)), self._state)
        self._state = h.detach(), c.detach()
        return self.dropout(self.features(self.dropout(hidden))).flatten(0, 1)

    def multiply_adds(self) -> int:
        """Of one word."""
        return sum(w.numel() for w in (self.lstm.weight_ih_l0, self.lstm.weight_hh_l0, self.features.weight))


class LanguageModel(nn.Module):
    """P(word | the words before it)."""

    body: FeedForward | Recurrent
    output: OutputLayer

    def __init__(self, words: tree.Words, shape: Shape) -> None:
        super().__init__()
        self.body = (FeedForward if shape.body == "feed-forward" else Recurrent)(len(words.count), shape)
        if shape.output == "full":
            self.output = FullSoftmax(words, shape.width, shape.loss, shape.samples)
        elif shape.output == "shortlist":
            self.output = ShortlistSoftmax(words, shape.width, shape.listed)
        elif shape.output == "classes":
            self.output = ClassSoftmax(words, shape.width)
        else:
            self.output = BinarySoftmax(words, shape.width)

    def loss(self, context: Tensor, word: Tensor) -> Tensor:
        """The training loss of a batch."""
        return self.output.loss(self.body(context), word.flatten())

    def forward(self, context: Tensor, word: Tensor) -> Tensor:
        """log P of each word in nats, float32 (N,)."""
        return self.output.log_prob(self.body(context), word.flatten())
