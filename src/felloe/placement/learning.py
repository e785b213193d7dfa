"""What the leader learns from real loads: compute buffers by what engines say, overhead by what they failed for.

A lesson is about one model and one kind of device, wherever it was learned. Weights and cache are exact and teach
nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from felloe.domain.fleet import DeviceKind, Machine
from felloe.domain.ids import ModelName, NodeId
from felloe.domain.plan import Part, Placement
from felloe.domain.roster import LoadFailure, Replica
from felloe.placement.corrections import NO_CORRECTIONS, Correction, Corrections
from felloe.placement.facts import ModelFacts
from felloe.placement.memory import Share, price
from felloe.placement.settings import Settings
from felloe.placement.shape import Shape

UNKNOWN_SHORT_BYTES = 256 * 2**20
"""How much more is allowed for where an engine did not say what it was short of."""

MOST_OVERHEAD_BYTES = 8 * 2**30
_LEAST_FACTOR, _MOST_FACTOR = 0.5, 8.0
_STEP = 0.25
_ROUND_BYTES = 64 * 2**20


class Lessons:
    """All that was learned, by model (variant). Owns it; no I/O."""

    def __init__(self) -> None:
        self.corrections: Mapping[ModelName, Corrections] = {}

    def from_failures(self, failures: Iterable[tuple[NodeId, LoadFailure]], machines: Mapping[NodeId, Machine]) -> None:
        """Learn from failures that are told for the first time."""
        for node, failure in failures:
            if node in machines:
                known = self.corrections.get(failure.variant, NO_CORRECTIONS)
                self._learn(failure.variant, known, after_failure(known, failure, machines[node]))

    def from_replicas(
        self,
        served: Iterable[tuple[Placement, Replica]],
        machines: Mapping[NodeId, Machine],
        models: Mapping[ModelName, ModelFacts],
    ) -> None:
        """Learn from what the engines of the plan's replicas say now."""
        told: dict[ModelName, list[dict[DeviceKind, float]]] = {}
        for placement, replica in served:
            facts, machine = models.get(placement.variant), machines.get(placement.node)
            if facts is not None and machine is not None:
                factors = compute_factors(placement, machine, facts.shape, replica.parts)
                told.setdefault(placement.variant, []).append(factors)
        for variant, factors in told.items():
            known = self.corrections.get(variant, NO_CORRECTIONS)
            self._learn(variant, known, with_factors(known, factors))

    def _learn(self, variant: ModelName, known: Corrections, lesson: Corrections) -> None:
        if lesson != known:
            # A new mapping each time: problems that were made from the old one keep it.
            self.corrections = {**self.corrections, variant: lesson}


def compute_factors(
    placement: Placement, machine: Machine, shape: Shape, real: Sequence[Part]
) -> dict[DeviceKind, float]:
    """By how much the compute buffers of a replica that serves are off the estimate, by kind of device.

    In coarse steps upwards, so that small differences change no plan; empty when the two cannot be compared.
    """
    if [part.device for part in real] != [part.device for part in placement.parts]:
        return {}
    shares: list[Share] = []
    for part in placement.parts:
        device = machine.device(part.device)
        if device is None:
            return {}
        shares.append(Share(device=device, layers=part.layers))
    settings = Settings(context=placement.context, slots=placement.slots, kv_type=placement.kv_type)
    factors: dict[DeviceKind, float] = {}
    for share, estimate, part in zip(shares, price(shape, settings, shares), real, strict=True):
        if estimate.compute > 0 and part.need.compute > 0:
            factor = math.ceil(part.need.compute / estimate.compute / _STEP) * _STEP
            kind = share.device.kind
            factors[kind] = max(factors.get(kind, _LEAST_FACTOR), min(factor, _MOST_FACTOR))
    return factors


def with_factors(known: Corrections, factors: Iterable[Mapping[DeviceKind, float]]) -> Corrections:
    """The corrections after replicas have told; where several do, the largest holds."""
    largest: dict[DeviceKind, float] = {}
    for told in factors:
        for kind, factor in told.items():
            largest[kind] = max(factor, largest.get(kind, 0.0))
    kinds = dict(known.kinds)
    for kind, factor in largest.items():
        kinds[kind] = Correction(compute=factor, overhead=known.of(kind).overhead)
    return Corrections(kinds=kinds)


def after_failure(known: Corrections, failure: LoadFailure, machine: Machine) -> Corrections:
    """The corrections after a load failed for memory: each device that was short is reckoned to need so much more."""
    kinds = dict(known.kinds)
    for name, short in failure.short.items():
        device = machine.device(name)
        if device is None:
            continue
        before = kinds.get(device.kind, Correction())
        more = max(0, short) or UNKNOWN_SHORT_BYTES
        overhead = min(before.overhead + math.ceil(more / _ROUND_BYTES) * _ROUND_BYTES, MOST_OVERHEAD_BYTES)
        kinds[device.kind] = Correction(compute=before.compute, overhead=overhead)
    return Corrections(kinds=kinds)
