"""Who is alive, and which of a node's records counts, decided from what was heard and when.

A node is alive from the moment it is heard. It is dead at once when a hub says that its connection closed, and dead
after `DEAD_AFTER_SECONDS` of silence, which is how a frozen one is noticed. It is forgotten after an hour. A node that
speaks again is alive again. When this node itself was deaf (suspended, or stalled for long), the others' silence
proves nothing and is counted anew.

Within one run of a node (`started_at`) a later record replaces an earlier one. Between two runs so does the later one;
but clocks are set back, so an earlier one counts, too, once the run that is known has fallen silent: then it was heard
from the node itself, and is not of a run that another has replaced, so that nobody can play an old record again.

A node's sessions with hubs are numbered within a run. When the number grows, its line was cut and stands again: what it
was sending is lost, but the node lives. What an older session said comes late and counts for nothing.

All times are seconds of one monotonic clock, passed in, but for those in records.
"""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from felloe.domain.ids import NodeId
from felloe.domain.roster import Load, NodeRecord

DEAD_AFTER_SECONDS = 5.0
DEAF_AFTER_SECONDS = 2.0
SILENT_AFTER_SECONDS = 2.0
FORGET_AFTER_SECONDS = 3600.0
MAX_MEMBERS = 10_000
FORMER_RUNS = 8


class Heard(NamedTuple):
    """What came of one message or one sweep.

    `changed`: members whose record, load or liveness is new (or who are forgotten). `lost`: members whose answers
    should no longer be waited for, because they died or started anew. `moved`: members who live and have a new line.
    """

    changed: tuple[NodeId, ...] = ()
    lost: tuple[NodeId, ...] = ()
    moved: tuple[NodeId, ...] = ()


class Pulse(NamedTuple):
    """Which run of a node a heartbeat is of, and which session with a hub in it; 0 where an older version says none."""

    started_at: float = 0.0
    session: int = 0


UNTOLD = Pulse()
NOTHING = Heard()


class Known:
    """One member as this node knows it; `heard` is when it last spoke, `former` the runs that were replaced."""

    __slots__ = ("alive", "former", "heard", "load", "record", "session", "signed")

    def __init__(self, record: NodeRecord, signed: bytes, load: Load, alive: bool, heard: float) -> None:
        self.record = record
        self.signed = signed
        self.load = load
        self.alive = alive
        self.heard = heard
        self.session = 0
        self.former: deque[float] = deque(maxlen=FORMER_RUNS)

    def is_other_run(self, pulse: Pulse) -> bool:
        """Whether a heartbeat is not of the run whose record is known."""
        return pulse.started_at not in (0.0, self.record.started_at)


class Census:
    """All members. Every method takes what was heard, already checked, and tells what it changed."""

    def __init__(self, now: float) -> None:
        self.known: dict[NodeId, Known] = {}
        self._last_sweep = now
        self._listening_since = now

    def has(self, node: NodeId, signed: bytes) -> bool:
        """Whether exactly this signed record of `node` is already held, so that nothing need be checked again."""
        known = self.known.get(node)
        return known is not None and known.signed == signed

    def lacks(self, node: NodeId, issued_at: float, pulse: Pulse = UNTOLD) -> bool:
        """Whether `node` has a record that is not held here."""
        known = self.known.get(node)
        return known is None or known.record.issued_at < issued_at or known.is_other_run(pulse)

    def hear_record(self, record: NodeRecord, signed: bytes, now: float) -> Heard:
        """A node published its record: heard where only the node itself may speak."""
        known = self.known.get(record.id)
        if known is None:
            return self._admit(Known(record, signed, Load(), True, now), now)
        replaced = self._replace(known, record, signed, earlier_counts=_is_silent(known, now))
        if record.started_at != known.record.started_at:
            return replaced
        revived = self._speaks(known, now)
        return Heard(replaced.changed or revived.changed, replaced.lost)

    def hear_load(self, node: NodeId, load: Load, now: float, pulse: Pulse = UNTOLD) -> Heard:
        """A node told its load; nothing comes of it while the record of its run is unknown."""
        known = self.known.get(node)
        if known is None or known.is_other_run(pulse) or 0 < pulse.session < known.session:
            return NOTHING
        moved = (node,) if 0 < known.session < pulse.session else ()
        known.session = max(known.session, pulse.session)
        changed = self._speaks(known, now).changed
        if known.load != load:
            known.load = load
            changed = (node,)
        return Heard(changed, moved=moved)

    def hear_of(self, record: NodeRecord, signed: bytes, load: Load, silence: float | None, now: float) -> Heard:
        """A hub told about a node that it last heard `silence` seconds ago (None: dead); no sign of life by itself."""
        known = self.known.get(record.id)
        if known is None:
            heard = now - min(silence or 0.0, DEAD_AFTER_SECONDS)
            return self._admit(Known(record, signed, load, silence is not None, heard), now)
        return self._replace(known, record, signed, earlier_counts=False)

    def drop(self, nodes: Iterable[NodeId]) -> Heard:
        """Forget these members at once, as lost."""
        dropped = tuple(node for node in nodes if self.known.pop(node, None) is not None)
        return Heard(dropped, dropped) if dropped else NOTHING

    def hear_gone(self, node: NodeId) -> Heard:
        """A hub saw the node's connection close."""
        known = self.known.get(node)
        if known is None or not known.alive:
            return NOTHING
        known.alive = False
        return Heard((node,), (node,))

    def sweep(self, now: float) -> Heard:
        """Find the silent and forget the long dead; call it about twice a second."""
        if now - self._last_sweep > DEAF_AFTER_SECONDS:
            self._listening_since = now
        self._last_sweep = now
        silent_before = now - DEAD_AFTER_SECONDS
        died: list[NodeId] = []
        forgotten: list[NodeId] = []
        for node, known in self.known.items():
            if known.alive:
                if known.heard < silent_before and self._listening_since < silent_before:
                    known.alive = False
                    died.append(node)
            elif known.heard < now - FORGET_AFTER_SECONDS:
                forgotten.append(node)
        for node in forgotten:
            del self.known[node]
        return Heard((*died, *forgotten), tuple(died)) if died or forgotten else NOTHING

    def _admit(self, newcomer: Known, now: float) -> Heard:
        changed: tuple[NodeId, ...] = (newcomer.record.id,)
        if len(self.known) >= MAX_MEMBERS:
            dead = min((k for k in self.known.values() if not k.alive), key=lambda k: k.heard, default=None)
            if dead is None:
                return NOTHING
            del self.known[dead.record.id]
            changed = (newcomer.record.id, dead.record.id)
        self.known[newcomer.record.id] = newcomer
        return Heard(changed)

    def _replace(self, known: Known, record: NodeRecord, signed: bytes, *, earlier_counts: bool) -> Heard:
        started_anew = record.started_at != known.record.started_at
        may_be_earlier = started_anew and earlier_counts and record.started_at not in known.former
        if record.issued_at <= known.record.issued_at and not may_be_earlier:
            return NOTHING
        if started_anew:
            known.former.append(known.record.started_at)
            known.session = 0
        known.record = record
        known.signed = signed
        return Heard((record.id,), (record.id,) if started_anew else ())

    def _speaks(self, known: Known, now: float) -> Heard:
        known.heard = now
        if known.alive:
            return NOTHING
        known.alive = True
        return Heard((known.record.id,))


def _is_silent(known: Known, now: float) -> bool:
    return not known.alive or now - known.heard > SILENT_AFTER_SECONDS
