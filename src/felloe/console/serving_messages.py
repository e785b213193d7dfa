"""What the command line and a node say about the models that the network serves. Times in Unix seconds."""

from typing import Literal

from msgspec import Struct

from felloe.domain.fleet import Fleet
from felloe.domain.ids import ModelName
from felloe.domain.plan import DesiredModel, Plan

ServingState = Literal["ready", "loading", "cold", "refused", "waiting"]


class ServingPlace(Struct, frozen=True, kw_only=True):
    """A replica: the node by name, the model that stands there, the context of one slot in tokens.

    `by_owner`: no plan put it there, its owner loaded it; its devices are not told then.
    """

    node: str
    variant: ModelName
    devices: tuple[str, ...]
    context: int
    ready: bool
    by_owner: bool = False


class ServingRow(Struct, frozen=True, kw_only=True):
    """A model that is wanted, and how it is served now, as far as this node knows.

    `cold`: nobody needs it now, it is loaded on demand; `refused`: it does not fit, `note` says why; `waiting`: no plan
    has answered the wish yet. `ready` counts the replicas that answer, those that were loaded by hand included.
    """

    desired: DesiredModel
    state: ServingState
    ready: int
    places: tuple[ServingPlace, ...] = ()
    note: str = ""


class ServingView(Struct, frozen=True, kw_only=True):
    """All that is wanted. `number` and `made_at` are the plan's, 0 before the first."""

    rows: tuple[ServingRow, ...]
    number: int = 0
    made_at: float = 0.0


class Declared(Struct, frozen=True, kw_only=True):
    """What is wanted from now on; `notes` are what an owner should know about it."""

    desired: DesiredModel
    notes: tuple[str, ...] = ()


class PlanView(Struct, frozen=True, kw_only=True):
    """The network's plan and what it was made from, as far as this node knows: `plan.number` is 0 before the first."""

    plan: Plan
    fleet: Fleet
    desired: tuple[DesiredModel, ...]
    term: int = 0
    made_at: float = 0.0
