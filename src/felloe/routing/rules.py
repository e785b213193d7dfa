"""What routing decides: who may answer, who does, whether a failure is tried elsewhere, how long to wait.

Pure: no clock, no randomness and no I/O; the caller passes in numbers. The rule of choice, in order:

1. This node, while its replica has a free slot (device first).
2. Else another node with a free slot, as far as its last report and what was sent there since tell: two are drawn at
   random, in proportion to what they can do, and the one takes the request that is likely to be done first. Where
   replicas differ clearly, a third is drawn, and one more among all, for a queue at a fast one may be shorter than an
   answer of a slow one. Few draws keep askers with the same stale report from all choosing the same.
3. Else, when nobody has a free slot: this node, unless one of two others is likely to be done earlier.

How long a request is likely to take is (1 + pressure) / speed: pressure is requests active and waiting per slot, speed
the tokens a second of one answer as its node has measured it. A replica that has not been measured counts as fast as
the mean of the others, so that among equals the less pressed one is chosen; more slots break a tie.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

from felloe.domain.ids import ModelDigest, ModelName, NodeId
from felloe.domain.models import Capability
from felloe.domain.requests import InferenceRequest, Piece, Reach
from felloe.domain.roster import Member, Replica, Roster
from felloe.domain.versions import compatible
from felloe.routing.targets import Target, Targets, slots_of, speed_of

FINISH_MARK = b'"finish_reason":"'
"""Stands in the frame that completes an answer, and never inside a JSON string, where its quotes would be escaped."""

MOST_FAILURES = 16
MOST_BARREN_FAILURES = 3
MOST_CUTS = 256
MOST_REFUSALS = 8
LEAST_RETRY_AFTER = 1.0
MOST_RETRY_AFTER = 60.0

LOSSES = frozenset(
    {
        "replica_lost",
        "line_lost",
        "engine_failed",
        "network_unreachable",
        "upstream_failed",
        "unsealed",
        "replayed",
        "internal",
    }
)
"""The replica or the way to it broke: another one goes on."""

REFUSALS = frozenset({"overloaded", "draining", "no_replica", "model_not_found", "engine_start_failed"})
"""The replica did not begin: another one may."""

FIRST_NAP_SECONDS = 0.05
LONGEST_NAP_SECONDS = 0.4

_REACHES: dict[Reach, int] = {"device": 0, "network": 1, "market": 2}
_SMALL = 8
_DRAWS = 12


class Busy(NamedTuple):
    """Requests of one model on one node: being answered and waiting."""

    active: int
    waiting: int


class Wanted(NamedTuple):
    """What a replica must offer. `digest` is None while any will do; `context` is in tokens."""

    model: ModelName
    capabilities: tuple[Capability, ...]
    digest: ModelDigest | Literal[""] | None = None
    context: int = 0


class Others(NamedTuple):
    """What is known of the other nodes for one model.

    `ready` and `free` come from an index that may be a little old; `members` is the newest snapshot and has the last
    word. `outstanding` counts the requests of this model that this node has at each node now.
    """

    ready: Targets
    free: Targets
    members: Mapping[NodeId, Member]
    outstanding: Mapping[tuple[NodeId, ModelName], int]


Excludes = Callable[[NodeId, float], bool]
"""Whether a node whose record was issued then must not be asked."""


def narrower(first: Reach, second: Reach) -> Reach:
    """The smaller of two reaches."""
    return first if _REACHES[first] <= _REACHES[second] else second


def needed_capabilities(request: InferenceRequest) -> tuple[Capability, ...]:
    """What a model must be able to do to answer `request`."""
    needed: list[Capability] = [request.kind]
    if request.body.get("tools"):
        needed.append("tools")
    wanted_format: object = request.body.get("response_format")
    if isinstance(wanted_format, dict) and wanted_format.get("type") in ("json_object", "json_schema"):  # pyright: ignore[reportUnknownMemberType]
        needed.append("json_schema")
    return tuple(needed)


def fits(replica: Replica, wanted: Wanted) -> bool:
    """Whether `replica` can take the request, whatever its load."""
    model = replica.model
    return (
        replica.state == "ready"
        and (wanted.digest is None or model.digest == wanted.digest)
        and replica.context >= wanted.context
        and all(capability in model.capabilities for capability in wanted.capabilities)
    )


def pressure(busy: Busy, slots: int) -> float:
    """Requests active and waiting per slot; below 1 a slot is free."""
    return (busy.active + busy.waiting) / max(1, slots)


def choose(
    wanted: Wanted,
    local: tuple[Target, Busy] | None,
    others: Others,
    excludes: Excludes,
    random: Callable[[], float],
) -> Target | None:
    """The replica that takes the request by the rule at the head of this file; None when there is none.

    `local` has been checked to be allowed and to fit. `random` returns numbers in [0, 1).
    """
    here = 0.0 if local is None else pressure(local[1], local[0].replica.slots)
    if local is not None and here < 1:
        return local[0]
    known = 0.0 if local is None else speed_of(local[0].replica, 0.0)
    typical = others.ready.typical_speed or known or 1.0
    best: Target | None = None
    there = 0.0
    for target in _drawn(others, wanted, excludes, random):
        takes = likely_time(_pressure_there(target, others, wanted.model), speed_of(target.replica, typical))
        if best is None or (takes, -target.replica.slots) < (there, -best.replica.slots):
            best, there = target, takes
    if local is not None and (best is None or likely_time(here, known or typical) <= there):
        return local[0]
    return best


def likely_time(pressed: float, speed: float) -> float:
    """How long a request takes at a replica of this pressure and speed, in seconds for each token of its answer."""
    return (1 + pressed) / speed


def _pressure_there(target: Target, others: Others, model: ModelName) -> float:
    load = others.members[target.node].load
    # What this node has sent there may be newer than the last report, and is part of every later one.
    active = max(load.active.get(model, 0), others.outstanding.get((target.node, model), 0))
    return pressure(Busy(active, load.waiting.get(model, 0)), target.replica.slots)


def _drawn(others: Others, wanted: Wanted, excludes: Excludes, random: Callable[[], float]) -> list[Target]:
    """Whom to compare: at most four, none twice."""

    def allowed(target: Target) -> bool:
        member = others.members.get(target.node)
        return (
            member is not None
            and target.record is not None
            and is_open(member)
            and member.record.issued_at == target.record.issued_at
            and not excludes(target.node, target.record.issued_at)
            and fits(target.replica, wanted)
        )

    def has_room(target: Target) -> bool:
        return allowed(target) and _pressure_there(target, others, wanted.model) < 1

    varied = others.ready.varied
    free = _draw(others.free, has_room, 3 if varied else 2, random)
    if free and varied:
        return free + [target for target in _draw(others.ready, allowed, 1, random) if target not in free]
    return (
        free
        or _draw(others.ready, allowed, 2, random)
        or _keep(filter(allowed, others.ready), 2, others.ready.typical_speed, random)
    )


def _draw(targets: Targets, good: Callable[[Target], bool], most: int, random: Callable[[], float]) -> list[Target]:
    """Up to `most` good ones; of many, only some are looked at, so that it takes the same time for any number."""
    if len(targets) <= _SMALL:
        return _keep(filter(good, targets), most, targets.typical_speed, random)
    drawn: list[Target] = []
    for _ in range(_DRAWS):
        target = targets.draw(random)
        if target not in drawn and good(target):
            drawn.append(target)
            if len(drawn) == most:
                break
    return drawn


def _keep(targets: Iterable[Target], most: int, typical: float, random: Callable[[], float]) -> list[Target]:
    """Draw `most` of `targets` in proportion to what they can do."""
    left, kept = list(targets), list[Target]()
    if len(left) <= most:
        return left
    weights = [slots_of(target.replica) * speed_of(target.replica, typical or 1.0) for target in left]
    while len(kept) < most:
        point, at = random() * sum(weights), 0
        while at < len(left) - 1 and point >= weights[at]:
            point -= weights[at]
            at += 1
        kept.append(left.pop(at))
        del weights[at]
    return kept


def is_open(member: Member) -> bool:
    """Whether a node is alive and takes new requests."""
    return member.alive and not member.load.draining


def spoken_versions(ours: str, roster: Roster) -> frozenset[str]:
    """The versions in `roster` that work with `ours`; nodes of any other are shown but never asked."""
    present = {member.record.version for member in roster.members.values()}
    return frozenset(version for version in present if compatible(ours, version))


def should_retry(code: str, *, failures: int, barren: int, cuts: int, refusals: int) -> bool:
    """Whether a request that failed with `code` is tried on another replica.

    `failures` counts the replicas lost so far, `barren` those lost in a row without one new token (a request that
    kills what answers it must not go round), `cuts` how often in a row only the way broke without one, `refusals` the
    replicas that did not begin since the last progress. Whatever is the caller's fault, a divergence and a passed
    deadline are final.
    """
    if code in LOSSES:
        return failures <= MOST_FAILURES and barren <= MOST_BARREN_FAILURES and cuts <= MOST_CUTS
    return code in REFUSALS and refusals <= MOST_REFUSALS


def nap(cuts: int) -> float:
    """Seconds until a node may be asked again to which the way has broken `cuts` times in a row, without a token."""
    return min(LONGEST_NAP_SECONDS, FIRST_NAP_SECONDS * 2.0 ** min(cuts - 1, 8))


def retry_after(waiting: int, slots: int, answer_seconds: float) -> float:
    """Seconds until a request that comes now could start: the queue ahead of it at the recent speed, 1 to 60."""
    estimate = (waiting + 1) * answer_seconds / max(1, slots)
    return min(MOST_RETRY_AFTER, max(LEAST_RETRY_AFTER, estimate))


def follows(number: int, piece: Piece) -> bool:
    """Whether `piece` continues an answer of `number` tokens.

    Where ids are known they must account for every token, but for a last piece: the token that ends an answer has no
    text and therefore no id here. Without ids the number may only not go back.
    """
    accounted = number + len(piece.ids)
    if piece.ids and FINISH_MARK not in piece.frames:
        return piece.number == accounted
    return piece.number >= accounted
