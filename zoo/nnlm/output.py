"""The output layers: log P(word | features), the training losses, and what a word costs.

Every layer has ``log_prob(features, word)``, float32 (N, D) and int64 (N,) to float32 (N,) in nats, ``loss`` of the
same, a scalar, and ``multiply_adds(word)``, int64 (N,): the products that its log_prob needs for each word.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, logsigmoid

from dlc.zoo.nnlm import tree

LossName = Literal["full", "importance", "nce"]


def _table(rows: int, width: int) -> nn.Parameter:
    """Rows of output weights: small, so that training begins with the biases' distribution."""
    return nn.Parameter(torch.randn(rows, width) * 0.05)


def _log(shares: np.ndarray) -> Tensor:
    return torch.from_numpy(np.log(shares).astype(np.float32))


class OutputLayer(nn.Module):
    """What the layers share."""

    def log_prob(self, features: Tensor, word: Tensor) -> Tensor:
        """See the module's text."""
        raise NotImplementedError

    def loss(self, features: Tensor, word: Tensor) -> Tensor:
        """The mean negative log-likelihood, unless a layer has another."""
        return -self.log_prob(features, word).mean()

    def multiply_adds(self, word: Tensor) -> Tensor:
        """See the module's text."""
        raise NotImplementedError


class FullSoftmax(OutputLayer):
    """A softmax over all words (Bengio et al. 2003), trained by its likelihood or by samples.

    ``importance``: the sum over all words is estimated from the word itself and `samples` others, drawn from the
    unigram distribution Q and weighted by 1 / Q (Bengio and Senécal 2003, 2008; with the word itself in the sum as in
    Jean et al. 2015, which keeps the estimate above the word's own term).

    ``nce``: the scores, taken as normalised, tell the word from `samples` noise words of Q (Mnih and Teh 2012).

    All words of a batch share their samples, so a step has one dense product with the samples' rows.
    """

    def __init__(self, words: tree.Words, width: int, loss: LossName, samples: int) -> None:
        super().__init__()
        self.kind, self.samples = loss, samples
        self.rows = _table(len(words.share), width)
        self.bias = nn.Parameter(_log(words.share))
        self.register_buffer("noise", torch.from_numpy(words.share.astype(np.float32)), persistent=False)

    def log_prob(self, features: Tensor, word: Tensor) -> Tensor:
        """The normalised log-likelihood."""
        scores = torch.addmm(self.bias, features, self.rows.T)
        return torch.log_softmax(scores, 1).gather(1, word[:, None])[:, 0]

    def loss(self, features: Tensor, word: Tensor) -> Tensor:
        """See the class."""
        if self.kind == "full":
            return super().loss(features, word)
        drawn = torch.multinomial(self.noise, self.samples, replacement=True)
        expected = torch.log(self.noise * self.samples)  # log of how often a word is drawn, on average
        own = (features * embedding(word, self.rows)).sum(1) + self.bias[word]
        others = torch.addmm(self.bias[drawn], features, embedding(drawn, self.rows).T)
        if self.kind == "importance":
            weighted = (others - expected[drawn]).masked_fill(drawn == word[:, None], -torch.inf)
            return (torch.logsumexp(torch.cat([own[:, None], weighted], 1), 1) - own).mean()
        true, false = own - expected[word], others - expected[drawn]
        return -(logsigmoid(true) + logsigmoid(-false).sum(1)).mean()

    def multiply_adds(self, word: Tensor) -> Tensor:
        """Every row, for every word."""
        return torch.full_like(word, self.rows.numel())


class ShortlistSoftmax(OutputLayer):
    """A softmax over the most frequent words and one more output, "another word" (Schwenk and Gauvain 2002).

    `in_list` gives what the network says of a word: its own log probability, or that of "another word". `log_prob`
    shares the latter out by the unigram distribution; an n-gram model does that better, outside (`shortlist.py`).
    """

    def __init__(self, words: tree.Words, width: int, length: int) -> None:
        super().__init__()
        listed = np.argsort(-words.count, kind="stable")[:length]
        place = np.full(len(words.share), length)
        place[listed] = np.arange(length)
        tail = place == length
        rest = words.share[tail].sum()
        self.rows = _table(length + 1, width)
        self.bias = nn.Parameter(_log(np.append(words.share[listed], rest)))
        self.register_buffer("place", torch.from_numpy(place), persistent=False)
        self.register_buffer("within", _log(np.where(tail, words.share / rest, 1.0)), persistent=False)

    def in_list(self, features: Tensor, word: Tensor) -> Tensor:
        """The log probability of each word's output, (N,)."""
        scores = torch.addmm(self.bias, features, self.rows.T)
        return torch.log_softmax(scores, 1).gather(1, self.place[word][:, None])[:, 0]

    def log_prob(self, features: Tensor, word: Tensor) -> Tensor:
        """With the tail by its unigram distribution."""
        return self.in_list(features, word) + self.within[word]

    def multiply_adds(self, word: Tensor) -> Tensor:
        """Every row, for every word."""
        return torch.full_like(word, self.rows.numel())


class ClassSoftmax(OutputLayer):
    """Two softmaxes: over the classes, and over the words of the word's own class, whose rows alone are read.

    The rows of the words lie class by class.
    """

    def __init__(self, words: tree.Words, width: int) -> None:
        super().__init__()
        found = tree.classes(words)
        share = words.share
        of_class = np.bincount(found.of, share)
        self.class_rows = _table(len(found.start), width)
        self.class_bias = nn.Parameter(_log(of_class))
        self.rows = _table(len(share), width)
        self.bias = nn.Parameter(_log((share / of_class[found.of])[found.order]))
        self.widest = int(found.size.max())
        for name in ("start", "size", "of", "slot"):
            self.register_buffer(name, torch.from_numpy(getattr(found, name)), persistent=False)

    def log_prob(self, features: Tensor, word: Tensor) -> Tensor:
        """log P(class) + log P(word | class)."""
        return self.chosen(*self.log_probs(features, word), word)

    def chosen(self, of_class: Tensor, within: Tensor, word: Tensor) -> Tensor:
        """log P of each word, from what `log_probs` gives."""
        return (of_class.gather(1, self.of[word][:, None]) + within.gather(1, self.slot[word][:, None]))[:, 0]

    def log_probs(self, features: Tensor, word: Tensor) -> tuple[Tensor, Tensor]:
        """log P of all classes, (N, classes), and of the slots of the word's class, (N, widest), -inf where empty."""
        chosen = self.of[word]
        of_class = torch.log_softmax(torch.addmm(self.class_bias, features, self.class_rows.T), 1)
        place = torch.arange(self.widest, device=word.device)
        row = (self.start[chosen][:, None] + place).clamp_max(len(self.rows) - 1)
        scores = (embedding(row, self.rows) * features[:, None]).sum(2)
        scores = scores + embedding(row, self.bias[:, None])[:, :, 0]
        scores = scores.masked_fill(place >= self.size[chosen][:, None], -torch.inf)
        return of_class, torch.log_softmax(scores, 1)

    def multiply_adds(self, word: Tensor) -> Tensor:
        """The classes' rows, and those of the word's class."""
        return self.class_rows.numel() + self.size[self.of[word]] * self.rows.shape[1]


class BinarySoftmax(OutputLayer):
    """A decision at each inner node between the root and the word (Morin and Bengio 2005; Mnih and Hinton 2008)."""

    def __init__(self, words: tree.Words, width: int) -> None:
        super().__init__()
        found = tree.paths(words)
        share = np.broadcast_to(words.share[:, None], found.sign.shape)
        left, right = (np.bincount(found.node[found.sign == s], share[found.sign == s]) for s in (1, -1))
        self.rows = _table(len(words.share) - 1, width)
        self.bias = nn.Parameter(_log(left / right))
        self.register_buffer("node", torch.from_numpy(found.node), persistent=False)
        self.register_buffer("sign", torch.from_numpy(found.sign.astype(np.float32)), persistent=False)

    def log_prob(self, features: Tensor, word: Tensor) -> Tensor:
        """The sum of the decisions' log probabilities."""
        node, sign = self.node[word], self.sign[word]
        scores = (embedding(node, self.rows) * features[:, None]).sum(2)
        scores = scores + embedding(node, self.bias[:, None])[:, :, 0]
        return (logsigmoid(sign * scores) * sign.abs()).sum(1)

    def multiply_adds(self, word: Tensor) -> Tensor:
        """The rows of the word's path."""
        return self.sign[word].abs().sum(1).long() * self.rows.shape[1]
