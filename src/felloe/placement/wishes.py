"""What is wanted, made ready for planning: which variants and contexts may answer it, and what each is worth."""

import math
from collections.abc import Mapping, Sequence

from msgspec import Struct

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName
from felloe.domain.plan import DesiredModel
from felloe.domain.serving import LEAST_CONTEXT, check_numbers
from felloe.placement.facts import ModelFacts
from felloe.placement.settings import Settings

DEFAULT_CONTEXT = 8192

_VARIANT_FACTOR = 0.94
_CONTEXT_LOSS = 0.05
"""The shortest context costs less than the next smaller variant: a context shrinks before a variant is exchanged."""

_MOST_HALVINGS = 3


class Variant(Struct, frozen=True, kw_only=True):
    """One model that may stand for a wish, best first; `contexts` in tokens, longest first."""

    name: ModelName
    facts: ModelFacts
    quality: float
    contexts: tuple[int, ...]


class Wish(Struct, frozen=True, kw_only=True):
    """A desired model whose variants are known. `least` and `most` are how many replicas it may have."""

    desired: DesiredModel
    variants: tuple[Variant, ...]

    @property
    def least(self) -> int:
        """Replicas that should run in any case."""
        return self.desired.replicas_min

    @property
    def most(self) -> int:
        """Replicas that may run where memory is left."""
        return max(self.desired.replicas_min, self.desired.replicas_max)

    def settings(self, context: int) -> Settings:
        """How a replica of it is loaded with this context."""
        return Settings(context=context, slots=self.desired.slots, kv_type=self.desired.kv_type)


def wishes_of(
    desired: Sequence[DesiredModel], models: Mapping[ModelName, ModelFacts]
) -> tuple[tuple[Wish, ...], tuple[DesiredModel, ...]]:
    """The wishes that can be planned, by name, and those of which no variant is known.

    Raises `invalid_value` for a model that is wanted twice and for numbers that mean nothing.
    """
    ready: list[Wish] = []
    unknown: list[DesiredModel] = []
    seen: set[ModelName] = set()
    for wanted in sorted(desired, key=lambda wanted: wanted.model):
        if wanted.model in seen:
            raise FelloeError("invalid_value", f"{wanted.model} is wanted twice; say all that is wanted of it once")
        seen.add(wanted.model)
        check_numbers(wanted)
        variants = _variants(wanted, models)
        if variants:
            ready.append(Wish(desired=wanted, variants=variants))
        else:
            unknown.append(wanted)
    return tuple(ready), tuple(unknown)


def wanted_context(desired: DesiredModel, made_for: int) -> int:
    """Tokens of one slot that a variant made for `made_for` tokens (0: unknown) should have."""
    if desired.context:
        return min(desired.context, made_for) if made_for else desired.context
    return min(made_for, DEFAULT_CONTEXT) if made_for else DEFAULT_CONTEXT


def worth_of_context(context: int, contexts: tuple[int, ...]) -> float:
    """From 1 for the longest of `contexts` down to a little less for the shortest."""
    if context >= contexts[0] or len(contexts) < 2:
        return 1.0
    return 1 - _CONTEXT_LOSS * math.log(contexts[0] / max(context, contexts[-1])) / math.log(contexts[0] / contexts[-1])


def _variants(desired: DesiredModel, models: Mapping[ModelName, ModelFacts]) -> tuple[Variant, ...]:
    found: list[Variant] = []
    for place, name in enumerate(desired.variants or (desired.model,)):
        facts = models.get(name)
        if facts is None:
            continue
        if not math.isfinite(facts.quality) or not 0 <= facts.quality <= 1:
            raise FelloeError("invalid_value", f"{name}: quality must be from 0 to 1")
        quality = facts.quality or _VARIANT_FACTOR**place
        found.append(Variant(name=name, facts=facts, quality=quality, contexts=_contexts(desired, facts)))
    return tuple(found)


def _contexts(desired: DesiredModel, facts: ModelFacts) -> tuple[int, ...]:
    """The wanted context, some halves of it, and the least."""
    wanted = wanted_context(desired, facts.shape.context)
    least = min(desired.context_least, wanted) if desired.context_least else wanted
    steps = [wanted]
    while len(steps) <= _MOST_HALVINGS and steps[-1] // 2 > least:
        steps.append(max(LEAST_CONTEXT, steps[-1] // 2 // LEAST_CONTEXT * LEAST_CONTEXT))
    return tuple(dict.fromkeys([*(step for step in steps if step >= least), least]))
