"""The Llama network in PyTorch, with the names and the rotary layout of the Hugging Face family.

Source: Touvron et al. 2023, "LLaMA" (RMSNorm, SwiGLU, rotary embedding); Ainslie et al. 2023, "GQA".
Every weight matrix of a layer is a bias-free `nn.Linear` attribute, so that an adapter can wrap one by name.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from felloe.learning.recipe import NetworkShape

_INITIAL_DEVIATION = 0.02


class Attention(nn.Module):
    """Causal self-attention with grouped key and value heads."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.head_width = shape.head_width
        self.group = shape.heads // shape.key_value_heads
        key_value_width = shape.key_value_heads * shape.head_width
        self.query = nn.Linear(shape.width, shape.width, bias=False)
        self.key = nn.Linear(shape.width, key_value_width, bias=False)
        self.value = nn.Linear(shape.width, key_value_width, bias=False)
        self.output = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Map states [batch, time, width] to the same shape; angles are [time, head_width]."""
        query = _rotate(self._heads(self.query(states)), cosine, sine)
        key = _rotate(self._heads(self.key(states)), cosine, sine)
        value = self._heads(self.value(states))
        key = key.repeat_interleave(self.group, dim=1)
        value = value.repeat_interleave(self.group, dim=1)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.output(mixed.transpose(1, 2).reshape(states.shape))

    def _heads(self, projected: Tensor) -> Tensor:
        batch, time, _ = projected.shape
        return projected.view(batch, time, -1, self.head_width).transpose(1, 2)


class FeedForward(nn.Module):
    """The gated feed-forward layer (SwiGLU)."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.up = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.down = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """Map states [batch, time, width] to the same shape."""
        return self.down(functional.silu(self.gate(states)) * self.up(states))


class Layer(nn.Module):
    """One residual block: attention, then feed-forward, each after a norm."""

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.width, shape.norm_epsilon)
        self.attention = Attention(shape)
        self.feed_forward_norm = nn.RMSNorm(shape.width, shape.norm_epsilon)
        self.feed_forward = FeedForward(shape)

    def forward(self, states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Map states [batch, time, width] to the same shape."""
        states = states + self.attention(self.attention_norm(states), cosine, sine)
        return states + self.feed_forward(self.feed_forward_norm(states))


class Network(nn.Module):
    """A Llama whose output matrix is its embedding, transposed."""

    def __init__(self, shape: NetworkShape, generator: torch.Generator) -> None:
        """Draw the weights from `generator`, so that a seed decides them."""
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, shape.norm_epsilon)
        self._draw_weights(generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids [batch, time] to logits [batch, time, vocabulary]."""
        states = self.embedding(tokens)
        cosine, sine = rotary_angles(tokens.shape[1], self.shape)
        for layer in self.layers:
            states = layer(states, cosine, sine)
        return functional.linear(self.norm(states), self.embedding.weight)

    def loss(self, windows: Tensor) -> Tensor:
        """Mean negative log-likelihood in nats of each next token of windows [batch, time + 1]."""
        logits = self(windows[:, :-1])
        targets = windows[:, 1:].reshape(-1)
        return functional.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets)

    def parameter_count(self) -> int:
        """Trainable numbers; the tied output matrix counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _draw_weights(self, generator: torch.Generator) -> None:
        # Two additions to the residual stream in each layer: without this its variance grows with depth.
        residual_deviation = _INITIAL_DEVIATION / math.sqrt(2 * self.shape.layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() != 2:
                continue
            adds_to_residual = name.endswith(("attention.output.weight", "down.weight"))
            deviation = residual_deviation if adds_to_residual else _INITIAL_DEVIATION
            nn.init.normal_(parameter, std=deviation, generator=generator)


def rotary_angles(length: int, shape: NetworkShape) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, head_width] of the rotary position embedding (Su et al. 2021)."""
    exponents = torch.arange(0, shape.head_width, 2).float() / shape.head_width
    angles = torch.outer(torch.arange(length).float(), shape.rope_base**-exponents)
    both_halves = torch.cat([angles, angles], dim=-1)
    return both_halves.cos(), both_halves.sin()


def _rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return heads * cosine.to(heads.dtype) + turned * sine.to(heads.dtype)
