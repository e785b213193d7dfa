"""How many replicas of each model are wanted now: pure decisions; times in seconds of the leader's clock.

What an owner declares are bounds. In them the number follows the work: a model that nobody uses goes down to its least,
one whose queue is long gets another replica, one that is wanted on demand is loaded when somebody asks. Every change
rests a while, so that work that comes and goes does not make replicas come and go.
"""

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from felloe.domain.ids import NodeId
from felloe.domain.plan import DesiredModel

ASK_SECONDS = 60.0
"""How long an ask keeps a model wanted, used or not."""

STAY_SECONDS = 10.0
"""How long a model on demand gives way to no other after it was used or loaded."""

PRESS_SECONDS = 5.0
GROW_REST_SECONDS = 30.0
IDLE_WEIGHT = 0.1

NEVER = float("-inf")


class Work(Struct, frozen=True, kw_only=True):
    """What a model does in the whole network now: requests and slots, summed up over the living nodes.

    `ready` counts its replicas that answer, `placed` those in the present plan. `served` counts by node the requests
    that were begun there since the node started.
    """

    active: int = 0
    waiting: int = 0
    slots: int = 0
    ready: int = 0
    placed: int = 0
    served: Mapping[NodeId, int] = {}


class Use(Struct, frozen=True, kw_only=True):
    """What the leader remembers of one model. `wanted` replicas since `changed_at`; used or asked for at `used_at`.

    `pressed_since`: since when its queue is too long; `slack_since`: since when one replica fewer would do. None: not.
    """

    wanted: int
    changed_at: float = NEVER
    asked_at: float = NEVER
    used_at: float = NEVER
    pressed_since: float | None = None
    slack_since: float | None = None
    served: Mapping[NodeId, int] = {}


def looked(desired: DesiredModel, before: Use | None, work: Work, now: float, *, asked: bool = False) -> Use:
    """A model's use after a look at its work. Without `before` the leader is new, and goes on with what is placed."""
    least, most = desired.replicas_min, desired.replicas_max
    if before is None:
        before = Use(wanted=work.placed, used_at=now, served=work.served)
    busy = work.active > 0 or work.waiting > 0 or _was_served(before.served, work.served)
    use = replace(
        before,
        wanted=min(max(before.wanted, least), most),
        asked_at=now if asked else before.asked_at,
        used_at=now if busy or asked else before.used_at,
        served=work.served,
    )
    use = replace(
        use,
        pressed_since=_since(use.pressed_since, _is_pressed(use, work), now),
        slack_since=_since(use.slack_since, _has_slack(use, work), now),
    )
    wanted = _wanted(desired, use, work, now)
    if wanted == use.wanted:
        return use
    return replace(use, wanted=wanted, changed_at=now, pressed_since=None, slack_since=None)


def wanted_now(desired: DesiredModel, use: Use) -> DesiredModel:
    """What to ask of the plan: the replicas that are wanted now, and of these as many for sure as the owner says."""
    least = min(max(desired.replicas_min, 1), use.wanted)
    return replace(desired, replicas_min=least, replicas_max=use.wanted)


def gives_way(desired: DesiredModel, use: Use, now: float) -> bool:
    """Whether an asked model may take this one's place: it is here on demand only, and nobody has used it lately."""
    rests = now - max(use.used_at, use.changed_at) >= STAY_SECONDS
    return desired.replicas_min == 0 and use.wanted > 0 and rests


def calls(use: Use, work: Work, now: float) -> bool:
    """Whether somebody waits for this model, and no replica of it is planned."""
    return use.wanted > 0 and work.placed == 0 and now - use.asked_at < ASK_SECONDS


def _wanted(desired: DesiredModel, use: Use, work: Work, now: float) -> int:
    if use.wanted == 0:
        return 1 if now - use.asked_at < ASK_SECONDS else 0
    if use.pressed_since is not None and use.wanted < desired.replicas_max:
        rested = now - use.changed_at >= GROW_REST_SECONDS
        if rested and now - use.pressed_since >= PRESS_SECONDS:
            return use.wanted + 1
    if use.wanted <= desired.replicas_min:
        return use.wanted
    if work.placed == 0 and desired.replicas_min == 0:
        # It has given way or never fitted: it is loaded when it is asked for again.
        return use.wanted if now - max(use.asked_at, use.changed_at) < ASK_SECONDS else 0
    if not desired.idle_seconds:
        return use.wanted
    if use.wanted == 1:
        return 0 if now - use.used_at >= max(desired.idle_seconds, ASK_SECONDS) else 1
    idle = use.slack_since is not None and now - use.slack_since >= desired.idle_seconds
    return use.wanted - 1 if idle else use.wanted


def _is_pressed(use: Use, work: Work) -> bool:
    """The queue is as long as the slots are many, although all that is wanted is loaded."""
    return work.waiting > 0 and work.waiting >= work.slots and work.ready >= use.wanted


def _has_slack(use: Use, work: Work) -> bool:
    """One replica fewer would still have half of its slots free."""
    left = work.slots * (use.wanted - 1) / use.wanted if use.wanted > 1 else 0.0
    return work.waiting == 0 and work.active <= left / 2


def _was_served(before: Mapping[NodeId, int], after: Mapping[NodeId, int]) -> bool:
    return any(count > before.get(node, 0) for node, count in after.items())


def _since(before: float | None, holds: bool, now: float) -> float | None:
    if not holds:
        return None
    return now if before is None else before
