"""What hubs and nodes tell each other about models to serve: the wish, the plan, the call for a model."""

from typing import Literal

import msgspec
from msgspec import Struct

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName, is_model_name
from felloe.domain.plan import DesiredModel, Plan

MOST_DESIRED = 256
MOST_VARIANTS = 8
MOST_PINS = 8
MOST_REPLICAS = 1_000
MOST_SLOTS = 256
LEAST_CONTEXT = 256
MOST_CONTEXT = 1 << 24
MOST_PRIORITY = 1_000
LEAST_DEMAND = 1e-3
MOST_DEMAND = 1e6
MOST_IDLE_SECONDS = 30 * 86_400.0
_MOST_PIN_CHARACTERS = 128

DEMAND = "demand"
"""The hubs' service, and the command to the leading hub, that asks for a model which is not loaded."""

DemandState = Literal["ready", "loading", "wanted", "refused"]


class Serving(Struct, frozen=True, kw_only=True):
    """What owners want served, sorted by name, each name once."""

    models: tuple[DesiredModel, ...] = ()

    def find(self, model: str) -> DesiredModel | None:
        """What is wanted under this name."""
        return next((desired for desired in self.models if desired.model == model), None)


class NetworkPlan(Struct, frozen=True, kw_only=True):
    """The plan that all nodes follow; `term` is the leader's who wrote it, at `made_at` in Unix seconds."""

    plan: Plan
    term: int
    made_at: float


class DemandQuestion(Struct, frozen=True, array_like=True):
    """Somebody waits for this model."""

    model: ModelName


class DemandAnswer(Struct, frozen=True, array_like=True):
    """How the leader stands to a model that was asked for.

    `ready`: a replica serves; `loading`: one is planned; `wanted`: the plan is being made; `refused`: it does not fit
    now, `detail` says why. `wait_seconds` is how long it takes, as far as is known; 0 where it is not.
    """

    state: DemandState
    wait_seconds: float = 0.0
    detail: str = ""


def decode_serving(value: bytes) -> Serving:
    """What hubs tell of the topic `serving`. Raises `bad_state`."""
    try:
        return msgspec.json.decode(value, type=Serving)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FelloeError("bad_state", "what a hub tells of the models to serve cannot be read") from error


def decode_plan(value: bytes) -> NetworkPlan:
    """What hubs tell of the topic `plan`. Raises `bad_state`."""
    try:
        return msgspec.json.decode(value, type=NetworkPlan)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FelloeError("bad_state", "what a hub tells of the plan cannot be read") from error


def check_desired(desired: DesiredModel) -> None:
    """Raise `invalid_value`, naming the field, unless an owner can want this; it need not fit anywhere."""
    _require(is_model_name(desired.model), "model", "it cannot name a model")
    _require(len(desired.variants) <= MOST_VARIANTS, "variants", f"there are more than {MOST_VARIANTS}")
    _require(all(map(is_model_name, desired.variants)), "variants", "one cannot name a model")
    _require(len(set(desired.variants)) == len(desired.variants), "variants", "one appears twice")
    _require(desired.replicas_max >= 1, "replicas", f"the most is from 1 to {MOST_REPLICAS}")
    _require(desired.replicas_min <= desired.replicas_max, "replicas", "the least is above the most")
    _require(desired.demand >= LEAST_DEMAND, "demand", f"it is from {LEAST_DEMAND:g} to {MOST_DEMAND:g}")
    _require(len(desired.pins) <= MOST_PINS, "pins", f"there are more than {MOST_PINS}")
    _require(all(map(_is_pin, desired.pins)), "pins", "one is no `machine` and no `machine/device`")
    for context in (desired.context, desired.context_least):
        _require(not context or context >= LEAST_CONTEXT, "context", f"fewer than {LEAST_CONTEXT} tokens serve nobody")
    check_numbers(desired)


def check_numbers(desired: DesiredModel) -> None:
    """Raise `invalid_value`, naming the field, where a number is outside what a plan can reckon with.

    What the leader asks of a plan may be less than what an owner can want: no replica, or one that weighs little.
    """
    _require(0 <= desired.replicas_max <= MOST_REPLICAS, "replicas", f"the most is from 0 to {MOST_REPLICAS}")
    _require(0 <= desired.replicas_min <= MOST_REPLICAS, "replicas", f"the least is from 0 to {MOST_REPLICAS}")
    _require(abs(desired.priority) <= MOST_PRIORITY, "priority", f"it is from -{MOST_PRIORITY} to {MOST_PRIORITY}")
    _require(0 < desired.demand <= MOST_DEMAND, "demand", f"it is above 0 and at most {MOST_DEMAND:g}")
    _require(0 <= desired.context <= MOST_CONTEXT, "context", f"it is from 0 to {MOST_CONTEXT} tokens")
    _require(0 <= desired.context_least <= MOST_CONTEXT, "context", f"the least is from 0 to {MOST_CONTEXT} tokens")
    least_is_least = not desired.context or desired.context_least <= desired.context
    _require(least_is_least, "context", "the least is above what is wanted")
    _require(1 <= desired.slots <= MOST_SLOTS, "slots", f"they are from 1 to {MOST_SLOTS}")
    _require(0 <= desired.idle_seconds <= MOST_IDLE_SECONDS, "idle", "it is from 0 seconds to 30 days")


def _is_pin(pin: str) -> bool:
    machine, slash, device = pin.partition("/")
    parts = (machine, device) if slash else (machine,)
    short = len(pin) <= _MOST_PIN_CHARACTERS
    return short and pin.isprintable() and all(part and part == part.strip() and "/" not in part for part in parts)


def _require(condition: bool, field: str, why: str) -> None:
    if not condition:
        raise FelloeError("invalid_value", f"{field}: {why}", param=field)
