"""The networks: a window of words, a hard mixture of experts or one dense layer, and a softmax over all words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dlc.zoo.moe.data import CONTEXT, VOCABULARY


@dataclass(frozen=True)
class Shape:
    """The network.

    Attributes:
        experts: how many; with one, it is a dense layer.
        chosen: experts a word; more than one, because their weights sum to 1 and a single one would teach the router
            nothing.
        hidden: units of an expert.
        width: of a word's embedding.
        features: what the output layer reads.
        dropout: share of the features dropped in training.
    """

    experts: int = 8
    chosen: int = 2
    hidden: int = 32
    width: int = 64
    features: int = 128
    dropout: float = 0.1

    @property
    def window(self) -> int:
        """The embeddings of the words before, side by side."""
        return CONTEXT * self.width

    def dense(self) -> Shape:
        """The dense layer of at least as many multiply-adds a word; the router's are counted too."""
        router = self.window * self.experts
        hidden = self.chosen * self.hidden + -(-router // (self.window + self.features))
        return Shape(1, 1, hidden, self.width, self.features, self.dropout)

    def multiply_adds(self) -> int:
        """A word's, without the output layer, which is the same for all."""
        router = self.window * self.experts if self.experts > 1 else 0
        return router + self.chosen * self.hidden * (self.window + self.features)


class Experts(nn.Module):
    """A layer of experts with one hidden layer each, of which a row uses the best few.

    Shazeer et al., "Outrageously Large Neural Networks" (2017, arXiv:1701.06538): the weights of the chosen experts are
    their shares of a softmax among themselves. The loss of balance is that of Fedus, Zoph and Shazeer, "Switch
    Transformers" (2021, arXiv:2101.03961). In training all experts are computed for each row, and those not chosen
    weighted with zero: for layers this small that takes less time than sorting rows by expert.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        count, inputs, hidden, outputs = shape.experts, shape.window, shape.hidden, shape.features
        self.chosen = shape.chosen
        self.router = nn.Parameter(torch.randn(inputs, count) * inputs**-0.5)
        self.w1 = nn.Parameter(torch.randn(count, inputs, hidden) * (2 / inputs) ** 0.5)
        self.b1 = nn.Parameter(torch.zeros(count, 1, hidden))
        self.w2 = nn.Parameter(torch.randn(count, hidden, outputs) * hidden**-0.5)
        self.b2 = nn.Parameter(torch.zeros(count, 1, outputs))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The probabilities of all experts, float32 (N, experts), and the chosen ones, int64 (N, chosen)."""
        probabilities = torch.softmax(x @ self.router, -1)
        return probabilities, probabilities.topk(self.chosen, -1).indices

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map float32 (N, inputs) to float32 (N, outputs), and give the loss of balance of these rows.

        That is experts * sum over experts of (share of choices) * (mean probability): 1 where all are equal.
        """
        probabilities, chosen = self.route(x)
        mask = torch.zeros_like(probabilities).scatter(1, chosen, 1.0)
        gates = mask * probabilities
        gates = gates / gates.sum(1, keepdim=True)
        # One product for the first layers of all experts, and one for the weighted sum of their second layers.
        sums = x @ self.w1.transpose(0, 1).flatten(1) + self.b1.flatten()
        hidden = torch.relu(sums).unflatten(1, self.b1.shape[::2]) * gates[:, :, None]
        y = hidden.flatten(1) @ self.w2.flatten(0, 1) + gates @ self.b2[:, 0]
        balance = len(self.w1) * (mask.mean(0) / self.chosen * probabilities.mean(0)).sum()
        return y, balance


class Dense(nn.Module):
    """One hidden layer for all rows; its loss of balance is zero."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.hidden = nn.Linear(shape.window, shape.hidden)
        self.result = nn.Linear(shape.hidden, shape.features)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `Experts.forward`."""
        return self.result(torch.relu(self.hidden(x))), x.new_zeros(())


class LanguageModel(nn.Module):
    """P(word | the words before it): a layer over the window's embeddings, then a softmax."""

    layer: Experts | Dense

    def __init__(self, shape: Shape, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, shape.width)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.layer = Experts(shape) if shape.experts > 1 else Dense(shape)
        self.dropout = nn.Dropout(shape.dropout)
        self.output = nn.Linear(shape.features, vocabulary)

    def window(self, rows: Tensor) -> Tensor:
        """The embeddings of the context of rows int64 (N, CONTEXT + 1), float32 (N, window)."""
        return self.embedding(rows[:, :-1]).flatten(1)

    def forward(self, rows: Tensor) -> Tensor:
        """log P of the last word of each row in nats, float32 (N,)."""
        return self.score(rows)[0]

    def score(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the loss of balance."""
        features, balance = self.layer(self.window(rows))
        logits = self.output(self.dropout(features))
        return -nn.functional.cross_entropy(logits, rows[:, -1], reduction="none"), balance
