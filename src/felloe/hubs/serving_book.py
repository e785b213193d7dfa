"""What owners want served and the plan that answers it, as the state holds them.

A wish is changed on any hub; the plan is written by the leader alone, with its term.
"""

from collections.abc import Callable

from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.domain.plan import DesiredModel, Plan
from felloe.domain.serving import MOST_DESIRED, NetworkPlan, Serving, check_desired
from felloe.hubs.records import PLAN, SERVING, State, Watcher, decode, encode

MOST_REASON_CHARACTERS = 600


class ServingBook:
    """The wish and the plan on the state. Reading never waits; writes raise what `State.change` raises."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._wish: tuple[bytes | None, Serving] = (None, Serving())
        self._plan: tuple[bytes | None, NetworkPlan | None] = (None, None)

    def serving(self) -> Serving:
        """What is wanted; `bad_state` when that is damaged."""
        value = self._state.get(SERVING)
        if value != self._wish[0]:
            self._wish = (value, _read(value))
        return self._wish[1]

    def plan(self) -> NetworkPlan | None:
        """The newest plan known here; None before the first, `bad_state` when it is damaged."""
        value = self._state.get(PLAN)
        if value != self._plan[0]:
            self._plan = (value, None if value is None else decode(value, NetworkPlan))
        return self._plan[1]

    def on_wish(self, callback: Watcher) -> None:
        """Call `callback` in the event loop after what is wanted has changed."""
        self._state.on_change(SERVING, callback)

    async def declare(self, desired: DesiredModel) -> Serving:
        """Want this model, in place of what was wanted under its name.

        Raises `invalid_value`; `overloaded` for too many.
        """
        check_desired(desired)

        def declared(serving: Serving) -> Serving:
            others = tuple(other for other in serving.models if other.model != desired.model)
            if len(others) >= MOST_DESIRED:
                raise FelloeError("overloaded", f"{MOST_DESIRED} models are wanted already; retire one first")
            return Serving(models=tuple(sorted((*others, desired), key=lambda one: one.model)))

        return await self._change(declared)

    async def retire(self, model: str) -> Serving:
        """Want this model no more. Raises `not_found`."""

        def retired(serving: Serving) -> Serving:
            if serving.find(model) is None:
                raise FelloeError("not_found", f"nobody wants {model} served; `felloe serve --list` shows what is")
            return Serving(models=tuple(other for other in serving.models if other.model != model))

        return await self._change(retired)

    async def write_plan(self, plan: Plan, *, term: int, now: float) -> NetworkPlan:
        """As the leader of `term`: have all nodes follow this plan, under the next number. Raises `not_leader`."""
        short = tuple(replace(one, reason=one.reason[:MOST_REASON_CHARACTERS]) for one in plan.refusals)

        def change(before: bytes | None) -> bytes:
            number = 1 if before is None else decode(before, NetworkPlan).plan.number + 1
            numbered = replace(plan, number=number, refusals=short)
            return encode(NetworkPlan(plan=numbered, term=term, made_at=now))

        value = await self._state.change(PLAN, change, term=term)
        if value is None:
            raise FelloeError("internal", "the plan was not written")
        return decode(value, NetworkPlan)

    async def _change(self, function: Callable[[Serving], Serving]) -> Serving:
        def change(before: bytes | None) -> bytes:
            return encode(function(_read(before)))

        return _read(await self._state.change(SERVING, change))


def _read(value: bytes | None) -> Serving:
    return Serving() if value is None else decode(value, Serving)
