"""Muon, in float32: momentum whose direction is made orthogonal before each step.

Source: Jordan et al. 2024 (the iteration and its coefficients); Liu et al. 2025, "Muon is Scalable for LLM
Training" (the factor 0.2). PyTorch has a Muon, but it computes in bfloat16, which a processor without
bfloat16 units does three times more slowly, and one matrix at a time.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_ADAMW_SIZE = 0.2
_SMALLEST_NORM = 1e-7


class Muon(Optimizer):
    """Nesterov momentum and decoupled weight decay for matrices; `lr` has AdamW's scale."""

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient; matrices of one shape are computed together."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    average = self._momentum(matrix, matrix.grad, group["momentum"])
                    by_shape[matrix.shape].append((matrix, average))
            for shape, updates in by_shape.items():
                # An orthogonal matrix has entries of size 1 / sqrt(longer side); AdamW's steps have about 0.2.
                size = _ADAMW_SIZE * max(shape) ** 0.5
                directions = orthogonal(torch.stack([average for _, average in updates]))
                for (matrix, _), direction in zip(updates, directions, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.sub_(direction, alpha=group["lr"] * size)

    def _momentum(self, matrix: nn.Parameter, gradient: Tensor, momentum: float) -> Tensor:
        state = self.state[matrix]
        if "average" not in state:
            state["average"] = torch.zeros_like(matrix)
        state["average"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["average"], momentum)


def orthogonal(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices [count, rows, columns] near 1 by Newton-Schulz iteration."""
    linear, cubic, quintic = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if tall else matrices
    norms = torch.linalg.vector_norm(wide, dim=(-2, -1), keepdim=True)
    wide = wide / norms.clamp(min=_SMALLEST_NORM)
    for _ in range(_ITERATIONS):
        gram = wide @ wide.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        wide = torch.baddbmm(wide, polynomial, wide, beta=linear)
    return wide.mT if tall else wide
