"""What a hub remembers of the nodes by its own clock: since when each is there, and which ports were reached."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Set

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Endpoints
from felloe.hubs.probe import Reached
from felloe.hubs.rules import NodeFacts
from felloe.hubs.upkeep_rules import ARRIVAL_SECONDS

DEAF_SECONDS = 30.0
REACHED_SECONDS = 600.0
FIRST_BAR_SECONDS = 5.0
LONGEST_BAR_SECONDS = 600.0


class NodeWatch:
    """Since when nodes are alive or silent, and hubs not ready. Owns these times."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._looked = clock()
        self._alive: dict[NodeId, float] = {}
        self._silent: dict[NodeId, float] = {}
        self._unready: dict[NodeId, float] = {}

    def note_alive(self, nodes: Iterable[NodeId], alive: Set[NodeId]) -> None:
        """Look at all nodes; a look that comes late counts everything anew, for this hub heard nothing meanwhile."""
        now = self._clock()
        if now - self._looked > DEAF_SECONDS:
            self._alive.clear()
            self._silent.clear()
        self._looked = now
        known = set(nodes)
        self._alive = {node: self._alive.get(node, now) for node in known if node in alive}
        self._silent = {node: self._silent.get(node, now) for node in known if node not in alive}

    def note_ready(self, hubs: Mapping[NodeId, bool]) -> None:
        """Look at the hubs' servers."""
        now = self._clock()
        self._unready = {node: self._unready.get(node, now) for node, ready in hubs.items() if not ready}

    def steady_seconds(self, node: NodeId) -> float:
        """How long a node has been alive without a break."""
        now = self._clock()
        return now - self._alive.get(node, now)

    def silent_seconds(self, node: NodeId) -> float:
        """How long a node has not been alive."""
        now = self._clock()
        return now - self._silent.get(node, now)

    def arriving(self) -> frozenset[NodeId]:
        """The hubs that are not ready, but may soon be."""
        now = self._clock()
        return frozenset(node for node, since in self._unready.items() if now - since < ARRIVAL_SECONDS)


class Trials:
    """The outcome of trials, kept for ten minutes; a node that failed waits, longer each time."""

    def __init__(self, trial: Callable[[NodeId, Endpoints], Awaitable[Reached]], clock: Callable[[], float]) -> None:
        self._trial = trial
        self._clock = clock
        self._reached: dict[NodeId, tuple[Endpoints, str, float]] = {}
        self._bars: dict[NodeId, tuple[float, float]] = {}

    async def hold(self, node: NodeFacts) -> Reached:
        """Try a node's ports and remember what came of it; a node that does not answer is not reached."""
        if node.endpoints is None:
            return Reached(host=None, failures={"no address": "the node names none"})
        try:
            outcome = await self._trial(node.id, node.endpoints)
        except FelloeError as error:
            outcome = Reached(host=None, failures={node.name: error.detail})
        now = self._clock()
        if outcome.host is not None:
            self._reached[node.id] = (node.endpoints, outcome.host, now)
            self._bars.pop(node.id, None)
        else:
            _, last = self._bars.get(node.id, (0.0, FIRST_BAR_SECONDS / 2))
            seconds = min(2 * last, LONGEST_BAR_SECONDS)
            self._bars[node.id] = (now + seconds, seconds)
            self._reached.pop(node.id, None)
        return outcome

    def reached(self, nodes: Mapping[NodeId, NodeFacts]) -> dict[NodeId, str]:
        """The living nodes that were reached lately where they are now, and the host."""
        oldest = self._clock() - REACHED_SECONDS
        self._reached = {
            node: (endpoints, host, at)
            for node, (endpoints, host, at) in self._reached.items()
            if at > oldest and node in nodes and nodes[node].alive and nodes[node].endpoints == endpoints
        }
        self._bars = {node: bar for node, bar in self._bars.items() if node in nodes}
        return {node: host for node, (_, host, _) in self._reached.items()}

    def barred(self) -> frozenset[NodeId]:
        """The nodes that are not to be tried now."""
        now = self._clock()
        return frozenset(node for node, (until, _) in self._bars.items() if until > now)
