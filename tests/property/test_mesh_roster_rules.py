"""Who is alive, against a model that remembers everything."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from felloe.domain.hardware import Hardware
from felloe.domain.ids import NodeId
from felloe.domain.roster import Load, NodeRecord
from felloe.mesh import rules
from felloe.mesh.rules import DEAD_AFTER_SECONDS, DEAF_AFTER_SECONDS, FORGET_AFTER_SECONDS, Census, Heard

HARDWARE = Hardware(system="", machine="", processor="", cores=1, memory_total=1, memory_available=1)
RUNS = 1000.0
"""Runs in this test are numbered from here; 0 would mean that none is told."""

NODES = st.sampled_from([NodeId(letter * 26) for letter in "abcd"])


def record(node: NodeId, issued_at: float, started_at: float = 0.0) -> NodeRecord:
    return NodeRecord(
        id=node,
        name="",
        roles=("spoke",),
        version="",
        public_key=b"",
        sealing_config=b"",
        hardware=HARDWARE,
        replicas=(),
        started_at=RUNS + started_at,
        issued_at=issued_at,
    )


def signed(node: NodeId, issued_at: float, started_at: float) -> bytes:
    return f"{node}{issued_at}{started_at}".encode()


class Roster(RuleBasedStateMachine):
    """Nodes speak, fall silent, die and start anew; this node may be deaf for a while."""

    @initialize()
    def begin(self) -> None:
        self.now = self.last_sweep = self.listening = 100.0
        self.census = Census(self.now)
        self.newest: dict[NodeId, tuple[float, float]] = {}
        self.spoke: dict[NodeId, float] = {}
        self.alive: dict[NodeId, bool] = {}
        self.former: dict[NodeId, list[float]] = {}
        self.session: dict[NodeId, int] = {}

    @rule(node=NODES, issued_at=st.integers(0, 5), started_at=st.integers(0, 3))
    def publish(self, node: NodeId, issued_at: int, started_at: int) -> None:
        before = self.newest.get(node)
        is_new = before is None
        is_later = is_new or issued_at > before[0]
        is_other_run = not is_new and started_at != before[1]
        # A clock was set back: an earlier record of a run never heard of counts once the known run is silent.
        clock_was_set = is_other_run and self._is_silent(node) and started_at not in self.former[node]
        is_taken = is_later or clock_was_set
        was_dead = not is_new and not self.alive[node]
        heard = self.census.hear_record(
            record(node, issued_at, started_at), signed(node, issued_at, started_at), self.now
        )
        if is_taken:
            self._take(node, issued_at, started_at)
        assert heard.lost == ((node,) if is_taken and is_other_run else ())
        is_of_known_run = is_taken or not is_other_run
        assert (node in heard.changed) == (is_taken or (was_dead and is_of_known_run))
        if is_of_known_run:
            self._spoke(node)

    @rule(node=NODES, busy=st.integers(0, 2), session=st.integers(0, 4), started_at=st.none() | st.integers(0, 3))
    def beat(self, node: NodeId, busy: int, session: int, started_at: int | None) -> None:
        """`started_at` None: the heartbeat of an older version, which tells neither run nor session."""
        load = Load(active={"m": busy})
        pulse = rules.UNTOLD if started_at is None else rules.Pulse(started_at + RUNS, session)
        known = self.newest.get(node)
        before = self.session.get(node, 0)
        heard = self.census.hear_load(node, load, self.now, pulse)
        assert heard.lost == ()
        if known is None or (started_at is not None and (started_at != known[1] or 0 < session < before)):
            assert heard == Heard()
            return
        self._spoke(node)
        assert self.census.known[node].load == load
        assert heard.moved == ((node,) if started_at is not None and 0 < before < session else ())
        if started_at is not None:
            self.session[node] = max(before, session)

    @rule(node=NODES)
    def gone(self, node: NodeId) -> None:
        heard = self.census.hear_gone(node, self.now)
        assert heard.lost == ((node,) if self.alive.get(node) else ())
        if node in self.alive:
            self.alive[node] = False

    @rule(node=NODES, issued_at=st.integers(0, 5), silence=st.none() | st.floats(0, 100))
    def hearsay(self, node: NodeId, issued_at: int, silence: float | None) -> None:
        known = node in self.newest
        heard = self.census.hear_of(record(node, issued_at), signed(node, issued_at, 0.0), Load(), silence, self.now)
        if not known:
            self.alive[node] = silence is not None
            self.spoke[node] = self.now - min(silence or 0.0, DEAD_AFTER_SECONDS)
            self._take(node, issued_at, 0)
            assert heard == Heard((node,))
        elif issued_at > self.newest[node][0]:
            self._take(node, issued_at, 0)

    @rule(seconds=st.floats(0, 1.5))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self._sweep()

    @rule(seconds=st.sampled_from([3.0, 10.0, FORGET_AFTER_SECONDS + 1]))
    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._sweep()

    def _sweep(self) -> None:
        if self.now - self.last_sweep > DEAF_AFTER_SECONDS:
            self.listening = self.now
        self.last_sweep = self.now
        heard = self.census.sweep(self.now)
        died = {
            node
            for node, alive in self.alive.items()
            if alive and max(self.spoke[node], self.listening) < self.now - DEAD_AFTER_SECONDS
        }
        forgotten = {
            node
            for node, alive in self.alive.items()
            if not alive and self.spoke[node] < self.now - FORGET_AFTER_SECONDS
        }
        assert set(heard.lost) == died
        assert set(heard.changed) == died | forgotten
        for node in died:
            self.alive[node] = False
        for node in forgotten:
            self._forget(node)

    @rule(nodes=st.frozensets(NODES))
    def drop(self, nodes: frozenset[NodeId]) -> None:
        """Expelled nodes vanish at once, as lost."""
        heard = self.census.drop(nodes)
        known = nodes & self.newest.keys()
        assert set(heard.changed) == set(heard.lost) == known
        for node in known:
            self._forget(node)

    def _take(self, node: NodeId, issued_at: int, started_at: int) -> None:
        before = self.newest.get(node)
        if before is not None and before[1] != started_at:
            self.former[node] = [*self.former.get(node, []), before[1]][-rules.FORMER_RUNS :]
            self.session[node] = 0
        self.former.setdefault(node, [])
        self.newest[node] = (issued_at, started_at)

    def _forget(self, node: NodeId) -> None:
        del self.alive[node], self.spoke[node], self.newest[node], self.former[node]
        self.session.pop(node, None)

    def _is_silent(self, node: NodeId) -> bool:
        return not self.alive[node] or self.now - self.spoke[node] > rules.SILENT_AFTER_SECONDS

    def _spoke(self, node: NodeId) -> None:
        self.spoke[node] = self.now
        self.alive[node] = True

    @invariant()
    def the_census_is_what_the_model_remembers(self) -> None:
        if hasattr(self, "census"):
            assert {node: known.alive for node, known in self.census.known.items()} == self.alive
            assert {node: known.record.issued_at for node, known in self.census.known.items()} == {
                node: issued_at for node, (issued_at, _) in self.newest.items()
            }


TestRoster = Roster.TestCase


def test_a_full_roster_forgets_the_longest_dead_and_never_the_living() -> None:
    census = Census(0.0)
    nodes = [NodeId(f"{number:026d}") for number in range(rules.MAX_MEMBERS)]
    for number, node in enumerate(nodes):
        census.hear_record(record(node, 1.0), b"%d" % number, float(number))
    newcomer = NodeId("z" * 26)
    assert census.hear_record(record(newcomer, 1.0), b"", 1e6) == Heard()
    assert len(census.known) == rules.MAX_MEMBERS
    census.hear_gone(nodes[7], 1e5)
    census.hear_gone(nodes[3], 1e5)
    assert census.hear_record(record(newcomer, 1.0), b"", 1e6) == Heard((newcomer, nodes[3]))
    assert len(census.known) == rules.MAX_MEMBERS
