"""What there is to plan at one moment, and the part of it that is open while all that may stay does. Pure."""

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from felloe.domain.fleet import Fleet
from felloe.domain.ids import ModelName
from felloe.domain.plan import DesiredModel, Placement
from felloe.placement.corrections import Corrections
from felloe.placement.facts import ModelFacts
from felloe.placement.quarantine import Place
from felloe.placement.rules import count, less

Models = Mapping[ModelName, ModelFacts]


class Problem(Struct, frozen=True, kw_only=True):
    """What there is to plan: `current` is what may stay of the present plan, `desired` what is wanted now."""

    fleet: Fleet
    desired: tuple[DesiredModel, ...]
    models: Models
    current: tuple[Placement, ...]
    barred: frozenset[Place]
    corrections: Mapping[ModelName, Corrections] = {}

    @property
    def wanted(self) -> dict[ModelName, DesiredModel]:
        """What is wanted, by name."""
        return {desired.model: desired for desired in self.desired}


def open_part(problem: Problem) -> Problem:
    """What is still to be placed beside all of `current`, which keeps its memory and its nodes."""
    counts = count(problem.current)
    desired = (
        replace(
            one,
            replicas_min=max(0, one.replicas_min - counts.get(one.model, 0)),
            replicas_max=one.replicas_max - counts.get(one.model, 0),
        )
        for one in problem.desired
    )
    taken = frozenset(
        (placement.node, variant)
        for placement in problem.current
        for variant in (placement.variant, *_variants(problem, placement.model))
    )
    return replace(
        problem,
        fleet=less(problem.fleet, problem.current),
        desired=tuple(desired),
        current=(),
        barred=problem.barred | taken,
    )


def _variants(problem: Problem, model: ModelName) -> tuple[ModelName, ...]:
    desired = problem.wanted[model]
    return desired.variants or (desired.model,)
