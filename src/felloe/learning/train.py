"""The training loop, in float32: Muon for the matrices of the layers, AdamW for the embedding and the norms."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from felloe.learning.examples import TokenIds, batches
from felloe.learning.muon import Muon
from felloe.learning.network import Network
from felloe.learning.progress import Progress
from felloe.learning.recipe import NetworkShape, TrainingPlan

_REPORT_EVERY = 25
_ADAM_BETAS = (0.9, 0.95)
_MUON_MOMENTUM = 0.95


@dataclass(frozen=True)
class Trained:
    """A trained network and what it cost; `tokens` counts predicted tokens, repeats included."""

    network: Network
    steps: int
    tokens: int
    seconds: float


def train(
    shape: NetworkShape,
    plan: TrainingPlan,
    examples: Sequence[TokenIds],
    report: Callable[[Progress], None],
) -> Trained:
    """Train a new network on `examples`; the same arguments on the same kind of processor repeat it."""
    torch.set_num_threads(plan.threads)
    network = Network(shape, torch.Generator().manual_seed(plan.seed))
    optimizers = _optimizers(network, plan)
    source = batches(examples, plan.batch, plan.window, plan.seed)
    started = time.monotonic()
    for step in range(1, plan.steps + 1):
        rate = learning_rate(step, plan)
        loss = _update(network, optimizers, next(source), rate, plan.gradient_clip)
        if step % _REPORT_EVERY == 0 or step == plan.steps:
            report(_progress(step, plan, loss.item(), rate, time.monotonic() - started))
    tokens = plan.steps * plan.batch * plan.window
    return Trained(network, plan.steps, tokens, time.monotonic() - started)


def learning_rate(step: int, plan: TrainingPlan) -> float:
    """The rate of a step, counted from 1: a linear rise, a plateau, a linear fall that ends near zero."""
    rise = step / plan.warmup_steps if plan.warmup_steps else 1.0
    falling_steps = plan.decay_fraction * plan.steps
    fall = (plan.steps - step + 1) / falling_steps if falling_steps else 1.0
    return plan.peak_rate * min(1.0, rise, fall)


def _optimizers(network: Network, plan: TrainingPlan) -> tuple[Optimizer, Optimizer]:
    matrices = [parameter for parameter in network.layers.parameters() if parameter.dim() == 2]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in network.parameters() if id(parameter) not in chosen]
    muon = Muon(matrices, plan.peak_rate, _MUON_MOMENTUM, plan.weight_decay)
    return muon, AdamW(others, lr=plan.peak_rate, weight_decay=0.0, betas=_ADAM_BETAS)


def _update(network: Network, optimizers: Sequence[Optimizer], windows: Tensor, rate: float, clip: float) -> Tensor:
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
        optimizer.param_groups[0]["lr"] = rate
    loss = network.loss(windows)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
    for optimizer in optimizers:
        optimizer.step()
    return loss.detach()


def _progress(step: int, plan: TrainingPlan, loss: float, rate: float, seconds: float) -> Progress:
    return Progress(
        step=step,
        steps=plan.steps,
        loss=loss,
        learning_rate=rate,
        tokens_per_second=step * plan.batch * plan.window / seconds,
        remaining_seconds=seconds / step * (plan.steps - step),
    )
