"""How well a network predicts text that it was not trained on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from felloe.learning.examples import TokenIds
from felloe.learning.network import Network


@dataclass(frozen=True)
class Evaluation:
    """Figures over held-out text; only bits per byte compares across tokenizers."""

    loss: float
    """Mean negative log-likelihood in nats a token."""
    tokens: int
    text_bytes: int

    @property
    def perplexity(self) -> float:
        """The exponential of the loss."""
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """All information that the model lacked, in bits, over the bytes of the text in UTF-8."""
        return self.loss * self.tokens / (math.log(2) * self.text_bytes)


def evaluate(network: Network, documents: Sequence[TokenIds], text_bytes: int, window: int) -> Evaluation:
    """Score each document in windows of `window` tokens that see nothing before themselves, in float32."""
    total = 0.0
    tokens = 0
    with torch.inference_mode():
        for document in documents:
            for piece in _pieces(torch.tensor(document), window):
                predicted = len(piece) - 1
                total += network.loss(piece[None]).item() * predicted
                tokens += predicted
    return Evaluation(total / tokens, tokens, text_bytes)


def _pieces(document: Tensor, window: int) -> list[Tensor]:
    starts = range(0, len(document) - 1, window)
    return [document[start : start + window + 1] for start in starts]
