"""Which nodes should be hubs and which hubs keep the state: pure decisions; times in seconds of this hub's clock."""

from collections.abc import Collection, Iterable
from itertools import chain

from msgspec import Struct

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Endpoints, Role
from felloe.domain.versions import compatible, refusal
from felloe.hubs.probe import Reached
from felloe.hubs.records import Generation, HubSet

MOST_STATE_HUBS = 5
MOST_HUBS = 7
STABLE_SECONDS = 600.0
GONE_SECONDS = 600.0
WANTED_COUNTS = (0, 1, 3, 5)
_AUTOMATIC_COUNT = 3


class NodeFacts(Struct, frozen=True, kw_only=True):
    """What this hub knows of one node.

    `steady_seconds` is how long it has been alive without a break, `silent_seconds` how long it has not been, 0 while
    it is. `ready`: its hub's servers are up. `endpoints` is None on a node that will not be a hub.
    """

    id: NodeId
    name: str
    role: Role
    public_key: bytes = b""
    version: str = ""
    endpoints: Endpoints | None = None
    alive: bool = False
    ready: bool = False
    draining: bool = False
    steady_seconds: float = 0.0
    silent_seconds: float = 0.0
    revoked: bool = False
    never_hub: bool = False


def odd(count: int) -> int:
    """The largest odd number up to `count` that a state can be kept on; at least 1."""
    return max(1, min(count - 1 + count % 2, MOST_STATE_HUBS))


def majority(count: int) -> int:
    """How many of `count` hubs must be alive for the state to take writes."""
    return count // 2 + 1


def state_hubs(
    hubs: Collection[NodeId],
    alive: Collection[NodeId],
    present: tuple[NodeId, ...],
    *,
    leader: NodeId | None = None,
) -> tuple[NodeId, ...]:
    """The hubs that should keep the state, 1, 3 or 5 of `hubs`; `present` keep it now.

    It stays where it is unless one of them is a hub no more, or other hubs would let it survive more losses. It goes to
    living hubs only: the leader first, who sees to the move, then those that keep it now.
    """
    living = [node for node in present if node in hubs and node in alive]
    living += [node for node in hubs if node in alive and node not in present]
    living.sort(key=lambda node: node != leader)
    best = tuple(living[: odd(len(living))])
    if not best:
        return present
    if all(node in hubs for node in present):
        spare = sum(node in alive for node in present) - majority(len(present))
        if spare < 0 or len(best) - majority(len(best)) <= spare:
            return present
    return best


def wanted_count(setting: int, eligible: int, present: int) -> int:
    """How many hubs there should be.

    `setting` 0 is automatic: three as soon as `eligible` nodes, the present hubs among them, allow it; never fewer than
    there are.
    """
    if setting:
        return setting
    return max(present, _AUTOMATIC_COUNT if eligible >= _AUTOMATIC_COUNT else 0)


def candidates(
    nodes: Iterable[NodeFacts], hubs: Collection[NodeId], ours: str, *, stable_seconds: float = STABLE_SECONDS
) -> tuple[NodeFacts, ...]:
    """The nodes that may be chosen as hubs, the longest alive first. `ours` is this hub's version."""
    fit = [
        node
        for node in nodes
        if node.id not in hubs
        and node.alive
        and not node.draining
        and not node.revoked
        and not node.never_hub
        and node.endpoints is not None
        and node.steady_seconds >= stable_seconds
        and compatible(ours, node.version)
    ]
    return tuple(sorted(fit, key=lambda node: (-node.steady_seconds, node.id)))


def choose_candidate(fit: Iterable[NodeFacts], reached: Collection[NodeId]) -> NodeFacts | None:
    """The first of them whose ports were reached."""
    return next((node for node in fit if node.id in reached), None)


def lost_for_good(silent_seconds: float, gone_seconds: float = GONE_SECONDS) -> bool:
    """Whether a hub that has been silent so long is to be replaced."""
    return silent_seconds >= gone_seconds


def keeps_majority(rest: Collection[NodeId], alive: Collection[NodeId]) -> bool:
    """Whether most of the hubs that would be left are alive."""
    return sum(node in alive for node in rest) >= majority(len(rest)) if rest else False


def check_promotion(node: NodeFacts | None, asked: str, hubs: HubSet, ours: str) -> NodeFacts:
    """The node `asked` for, if it may become a hub; its ports are still to be tried.

    Raises `not_found`, `forbidden`, `invalid_value` for a hub, `version_refused`, `node_unreachable`.
    """
    if node is None:
        raise FelloeError("not_found", f"there is no node {asked}; `felloe ps` lists the nodes")
    if node.revoked:
        raise FelloeError("forbidden", f"{node.name} was removed from the network")
    if node.role == "hub" and hubs.find(node.id) is not None:
        raise FelloeError("invalid_value", f"{node.name} is a hub already")
    if len(hubs.hubs) >= MOST_HUBS:
        raise FelloeError("invalid_value", f"there are {len(hubs.hubs)} hubs, which is the most; demote one first")
    if not node.alive:
        raise FelloeError("node_unreachable", f"{node.name} is not in touch with the network")
    if not compatible(ours, node.version):
        raise FelloeError("version_refused", refusal(ours, node.version, node.name))
    if node.endpoints is None or not node.endpoints.hosts:
        raise FelloeError(
            "node_unreachable",
            f"{node.name} names no address at which others can dial it; set one in its configuration",
        )
    return node


def check_reached(node: NodeFacts, reached: Reached) -> str:
    """The host at which the node was reached; `node_unreachable` with the addresses tried when there is none."""
    if reached.host is None:
        tried = "; ".join(f"{address}: {problem}" for address, problem in list(reached.failures.items())[:12])
        raise FelloeError("node_unreachable", f"{node.name} cannot be dialled as a hub ({tried})")
    return reached.host


def check_demotion(node: NodeFacts, staying: Collection[NodeId], alive: Collection[NodeId]) -> None:
    """Whether `node` may stop being a hub; `staying` are the hubs that nobody has demoted yet.

    Raises `invalid_value` when it is none, `quorum_at_risk`.
    """
    if node.id not in staying:
        raise FelloeError("invalid_value", f"{node.name} is not a hub")
    rest = [other for other in staying if other != node.id]
    if not rest:
        raise FelloeError("quorum_at_risk", f"{node.name} is the last hub of the network")
    if not keeps_majority(rest, alive):
        up = sum(other in alive for other in rest)
        raise FelloeError(
            "quorum_at_risk",
            f"demoting {node.name} would break the quorum: of the {len(rest)} hubs that remain {up} would be alive",
        )


def survives(hubs: HubSet, generation: Generation, alive: Collection[NodeId]) -> str:
    """A sentence for the owner: what the network's state survives now."""
    up = [node for node in generation.hubs if node in alive]
    spare = len(up) - majority(len(generation.hubs))
    if spare < 0:
        missing = _names(hubs, (node for node in generation.hubs if node not in alive), "and")
        return f"cannot be changed until enough of its hubs are back; {missing} cannot be reached"
    if spare > 0:
        return f"survives the loss of {'one hub' if spare == 1 else 'two hubs'}"
    sentence = f"cannot survive the loss of {_names(hubs, up, 'or')}"
    others = sum(hub.id in alive for hub in hubs.hubs)
    if odd(others) > len(up):
        return f"{sentence} yet: its state still has to move to more hubs"
    return f"{sentence}: promote another node (`felloe promote NODE`)"


def _names(hubs: HubSet, nodes: Iterable[NodeId], word: str) -> str:
    known = {hub.id: hub.name for hub in hubs.hubs}
    names = sorted(known.get(node, str(node)) for node in nodes)
    if len(names) < 2:
        return "".join(names)
    return "".join(chain(", ".join(names[:-1]), f" {word} ", names[-1]))
