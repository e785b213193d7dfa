"""Who is alive, and which of a node's records counts, decided from what was heard and when.

A node is alive from the moment it is heard. It is dead at once when a hub says that its connection closed, and dead
after `DEAD_AFTER_SECONDS` of silence, which is how a frozen one is noticed. It is forgotten after an hour. A node that
speaks again is alive again. When this node itself was deaf (suspended, or stalled for long), the others' silence
proves nothing and is counted anew. So it is while hubs tell who is alive: then they alone judge silence.

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

from msgspec.structs import replace

from felloe.domain.ids import NodeId
from felloe.domain.roster import Load, NodeRecord
from felloe.mesh.roster_wire import Standing

DEAD_AFTER_SECONDS = 5.0
DEAF_AFTER_SECONDS = 2.0
SILENT_AFTER_SECONDS = 2.0
FORGET_AFTER_SECONDS = 3600.0
MAX_MEMBERS = 10_000
FORMER_RUNS = 8
CLEARLY_LATER_SECONDS = 2.0


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
    """One member as this node knows it; `heard` is when it last spoke, `died` when it was last found dead, `former` the
    runs that were replaced."""

    __slots__ = ("alive", "died", "former", "heard", "load", "record", "session", "signed")

    def __init__(self, record: NodeRecord, signed: bytes, load: Load, alive: bool, heard: float) -> None:
        self.record = record
        self.signed = signed
        self.load = load
        self.alive = alive
        self.heard = heard
        self.died = heard
        self.session = 0
        self.former: deque[float] = deque(maxlen=FORMER_RUNS)

    @property
    def changed_at(self) -> float:
        """When it last said something new about itself, by its own clock; older versions do not tell it apart."""
        return self.record.changed_at or self.record.issued_at

    def is_other_run(self, pulse: Pulse) -> bool:
        """Whether a heartbeat is not of the run whose record is known."""
        return pulse.started_at not in (0.0, self.record.started_at)


class Census:
    """All members. Every method takes what was heard, already checked, and tells what it changed."""

    def __init__(self, now: float) -> None:
        self.known: dict[NodeId, Known] = {}
        self._last_sweep = now
        self._listening_since = now
        self._forget_at = now + FORGET_AFTER_SECONDS

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

    def hear_news(self, record: NodeRecord, signed: bytes, now: float) -> Heard:
        """A hub passed on what the node itself published a moment ago; no sign of life by itself."""
        known = self.known.get(record.id)
        if known is None:
            return self._admit(Known(record, signed, Load(), True, now), now)
        return self._replace(known, record, signed, earlier_counts=not known.alive)

    def hear_standing(self, standing: Standing, now: float, *, in_passing: bool) -> Heard:
        """A hub told how a member stands, at once when that changed, or `in_passing`, as it tells of everybody in turn.

        What it tells in passing may be a little older than what another hub has told at once, and counts only when it
        is clearly later.
        """
        known = self.known.get(NodeId(standing.id))
        if known is None or standing.started_at != known.record.started_at or 0 < standing.session < known.session:
            return NOTHING
        since = now - max(standing.age, 0.0)
        if in_passing and since < max(known.heard, known.died) + CLEARLY_LATER_SECONDS:
            return NOTHING
        if not standing.alive:
            return self._die(known, since)
        if not known.alive and not in_passing and since < known.died - CLEARLY_LATER_SECONDS:
            return NOTHING
        moved = (known.record.id,) if 0 < known.session < standing.session else ()
        known.session = max(known.session, standing.session)
        changed = not known.alive or known.load != standing.load
        known.alive, known.load, known.heard = True, standing.load, max(known.heard, since)
        return Heard((known.record.id,) if changed else (), moved=moved)

    def lacks_record(self, standing: Standing) -> bool:
        """Whether the member has said something about itself that is not held here."""
        known = self.known.get(NodeId(standing.id))
        if known is None or known.record.started_at != standing.started_at:
            return True
        return known.changed_at < standing.changed_at

    def judges_anew(self, now: float) -> None:
        """Until now this node did not listen to the others: their silence proves nothing."""
        self._listening_since = now

    def drop(self, nodes: Iterable[NodeId]) -> Heard:
        """Forget these members at once, as lost."""
        dropped = tuple(node for node in nodes if self.known.pop(node, None) is not None)
        return Heard(dropped, dropped) if dropped else NOTHING

    def hear_gone(self, node: NodeId, now: float) -> Heard:
        """A hub saw the node's connection close."""
        known = self.known.get(node)
        return NOTHING if known is None else self._die(known, now)

    def sweep(self, now: float) -> Heard:
        """Find the silent and forget the long dead; call it about twice a second.

        It looks at everybody only when one may have fallen silent, or be due to be forgotten.
        """
        if now - self._last_sweep > DEAF_AFTER_SECONDS:
            self._listening_since = now
        self._last_sweep = now
        silent_before = now - DEAD_AFTER_SECONDS
        if self._listening_since >= silent_before and now <= self._forget_at:
            return NOTHING
        self._forget_at = now + FORGET_AFTER_SECONDS
        died: list[NodeId] = []
        forgotten: list[NodeId] = []
        for node, known in self.known.items():
            if known.alive:
                if known.heard < silent_before and self._listening_since < silent_before:
                    known.alive, known.died = False, now
                    died.append(node)
            elif known.heard < now - FORGET_AFTER_SECONDS:
                forgotten.append(node)
            if not known.alive:
                self._forget_at = min(self._forget_at, known.heard + FORGET_AFTER_SECONDS)
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
        self._forget_at = min(self._forget_at, newcomer.heard + FORGET_AFTER_SECONDS)
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

    def _die(self, known: Known, when: float) -> Heard:
        if not known.alive:
            return NOTHING
        known.alive, known.died = False, when
        self._forget_at = min(self._forget_at, known.heard + FORGET_AFTER_SECONDS)
        return Heard((known.record.id,), (known.record.id,))

    def _speaks(self, known: Known, now: float) -> Heard:
        known.heard = now
        if known.alive:
            return NOTHING
        known.alive = True
        return Heard((known.record.id,))


def what_counts(record: NodeRecord) -> NodeRecord:
    """A record without what changes all the time: when it was issued, and how much memory is free and our own."""
    gpus = tuple(replace(gpu, memory_free=0, memory_own=0) for gpu in record.hardware.gpus)
    hardware = replace(record.hardware, memory_available=0, memory_own=0, gpus=gpus)
    return replace(record, issued_at=0, changed_at=0, hardware=hardware)


def _is_silent(known: Known, now: float) -> bool:
    return not known.alive or now - known.heard > SILENT_AFTER_SECONDS
