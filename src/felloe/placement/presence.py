"""On which nodes a plan relies: pure decisions; times in seconds of the leader's clock.

A node that falls silent is counted on a moment longer, because most come back at once. One that comes and goes is
counted on only after it has stayed, twice as long each time.
"""

from msgspec import Struct
from msgspec.structs import replace

GONE_SECONDS = 10.0
RETURN_SECONDS = 5.0
LONGEST_RETURN_SECONDS = 1800.0
FLAP_SECONDS = 60.0
MOST_DROPS = 3
FORGIVE_SECONDS = 600.0
SOON_SECONDS = 30.0
"""A node that has come back and is relied on this soon is worth waiting for."""


class Presence(Struct, frozen=True, kw_only=True):
    """How a node came and went. `since` is when it was last seen to come or go.

    `trusted`: a plan relies on it. `drops` are its latest losses, at most three; `strikes` counts those that are not
    forgiven, one is every ten minutes after the last.
    """

    alive: bool
    since: float
    trusted: bool = True
    drops: tuple[float, ...] = ()
    strikes: int = 0


def seen(before: Presence | None, alive: bool, now: float, *, orderly: bool = False) -> Presence:
    """A node after a look at it. `orderly`: it has said that it is stopping, so its going is no loss, and for good.

    A node that was never seen before is relied on while it is alive, and for a moment otherwise: the leader may be new.
    """
    if before is None:
        return Presence(alive=alive, since=now)
    presence = before
    if before.alive != alive:
        presence = replace(before, alive=alive, since=now)
        if not alive and orderly:
            return replace(presence, trusted=False)
        if not alive:
            presence = _struck(presence, now)
    return replace(presence, trusted=_is_trusted(presence, now))


def arrives(presence: Presence, now: float) -> bool:
    """Whether a plan does not rely on a node yet that is here, and will soon if it stays."""
    left = presence.since + return_seconds(presence.strikes) - now
    return presence.alive and not presence.trusted and left <= SOON_SECONDS


def heard_late(presence: Presence, now: float) -> Presence:
    """After the leader itself was deaf for a while: what it did not hear proves nothing."""
    return replace(presence, since=now)


def return_seconds(strikes: int) -> float:
    """How long a node must have stayed before it is relied on again."""
    return min(RETURN_SECONDS * 2.0 ** max(0, strikes - 1), LONGEST_RETURN_SECONDS)


def _struck(presence: Presence, now: float) -> Presence:
    last = presence.drops[-1] if presence.drops else now
    forgiven = int((now - last) // FORGIVE_SECONDS)
    return replace(
        presence,
        strikes=max(0, presence.strikes - forgiven) + 1,
        drops=(*presence.drops, now)[-MOST_DROPS:],
    )


def _is_trusted(presence: Presence, now: float) -> bool:
    stays = now - presence.since
    if not presence.trusted:
        return presence.alive and stays >= return_seconds(presence.strikes)
    if presence.alive:
        return not _is_flapping(presence, now)
    return stays < GONE_SECONDS and not _is_flapping(presence, now)


def _is_flapping(presence: Presence, now: float) -> bool:
    return (
        len(presence.drops) >= MOST_DROPS
        and now - presence.drops[0] < FLAP_SECONDS
        and now - presence.since < return_seconds(presence.strikes)
    )
