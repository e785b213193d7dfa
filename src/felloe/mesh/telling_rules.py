"""When hubs tell everybody how all members stand, who of them tells what, and how often a node speaks.

In a small network every node hears every other. That is a message from each to each in every second, which a thousand
nodes would drown in. So from a certain size on only hubs hear heartbeats and records, and each tells everybody, a few
times a second and in one message, what of them is new. Pure: numbers and times are passed in; times in seconds.
"""

from collections.abc import Collection
from zlib import crc32

from felloe.domain.ids import NodeId

CROWD = 64
"""Members from which on hubs tell."""

TELL_SECONDS = 0.25
PASS_SECONDS = 1.0
TOLD_SECONDS = 5.0
LISTEN_SECONDS = 15.0
SHORTEST_SECONDS = 0.05
MESSAGES_PER_SECOND = 2000
FRESH_SECONDS = 30.0


def tells(members: int, crowd: int, *, told_before: bool) -> bool:
    """Whether a hub that knows so many members tells how they stand; the size at which it ceases is a little lower."""
    return members >= (crowd - crowd // 4 if told_before else crowd)


def teller_of(node: NodeId, hubs: Collection[NodeId]) -> NodeId:
    """Which of these hubs tells of `node`: the same for all who ask, and another one only when that hub is gone."""
    return max(hubs, key=lambda hub: crc32(f"{hub} {node}".encode()))


def spacing(members: int) -> float:
    """Least seconds between two messages in which a node tells its load: what all together say stays bounded."""
    return max(SHORTEST_SECONDS, members / MESSAGES_PER_SECOND)


def listens(now: float, *, last_told: float | None, up_since: float | None, listens_now: bool) -> bool:
    """Whether a node that is no hub must listen to all others itself, because no hub tells it how they stand.

    When its line has just come up again, hubs are given time: perhaps they have just started, too, and all nodes wait
    for them at this moment. Without any line nothing changes. Listening to all is dear, and a node that is too busy to
    hear what it is told must not make itself busier, so it takes long silence.
    """
    if last_told is not None and now - last_told < LISTEN_SECONDS:
        return False
    if up_since is None:
        return listens_now
    return last_told is None or now - up_since >= LISTEN_SECONDS
