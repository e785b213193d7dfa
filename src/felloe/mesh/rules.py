"""Who is alive, decided from what was heard and when; and how long to wait before dialling again.

A node is alive from the moment it is heard. It is dead at once when a hub says that its connection closed, and dead
after `DEAD_AFTER_SECONDS` of silence, which is how a frozen one is noticed. It is forgotten after an hour. A node that
speaks again is alive again. When this node itself was deaf (suspended, or stalled for long), the others' silence
proves nothing and is counted anew.

All times are seconds of one monotonic clock, passed in.
"""

from typing import NamedTuple

from felloe.domain.ids import NodeId
from felloe.domain.roster import Load, NodeRecord

DEAD_AFTER_SECONDS = 5.0
DEAF_AFTER_SECONDS = 2.0
FORGET_AFTER_SECONDS = 3600.0
MAX_MEMBERS = 10_000

FIRST_DELAY_SECONDS = 0.05
LONGEST_DELAY_SECONDS = 5.0


def redial_delay(round_number: int, random: float) -> float:
    """Seconds to wait after `round_number` fruitless rounds over all hubs; `random` is in [0, 1)."""
    longest = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(round_number, 16))
    return longest * (0.5 + random / 2)


class Heard(NamedTuple):
    """What came of one message or one sweep.

    `changed`: members whose record, load or liveness is new (or who are forgotten). `lost`: members whose answers
    should no longer be waited for, because they died or started anew.
    """

    changed: tuple[NodeId, ...] = ()
    lost: tuple[NodeId, ...] = ()


NOTHING = Heard()


class Known:
    """One member as this node knows it; `heard` is when it last spoke."""

    __slots__ = ("alive", "heard", "load", "record", "signed")

    def __init__(self, record: NodeRecord, signed: bytes, load: Load, alive: bool, heard: float) -> None:
        self.record = record
        self.signed = signed
        self.load = load
        self.alive = alive
        self.heard = heard


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

    def lacks(self, node: NodeId, issued_at: float) -> bool:
        """Whether `node` has a record that is not held here."""
        known = self.known.get(node)
        return known is None or known.record.issued_at < issued_at

    def hear_record(self, record: NodeRecord, signed: bytes, now: float) -> Heard:
        """A node published its record."""
        known = self.known.get(record.id)
        if known is None:
            return self._admit(Known(record, signed, Load(), True, now), now)
        replaced = self._replace(known, record, signed)
        revived = self._speaks(known, now)
        return Heard(replaced.changed or revived.changed, replaced.lost)

    def hear_load(self, node: NodeId, load: Load, now: float) -> Heard:
        """A node told its load; nothing comes of it while its record is unknown."""
        known = self.known.get(node)
        if known is None:
            return NOTHING
        changed = self._speaks(known, now).changed
        if known.load != load:
            known.load = load
            changed = (node,)
        return Heard(changed)

    def hear_of(self, record: NodeRecord, signed: bytes, load: Load, silence: float | None, now: float) -> Heard:
        """A hub told about a node that it last heard `silence` seconds ago (None: dead); no sign of life by itself."""
        known = self.known.get(record.id)
        if known is None:
            heard = now - min(silence or 0.0, DEAD_AFTER_SECONDS)
            return self._admit(Known(record, signed, load, silence is not None, heard), now)
        return self._replace(known, record, signed)

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

    def _replace(self, known: Known, record: NodeRecord, signed: bytes) -> Heard:
        if record.issued_at <= known.record.issued_at:
            return NOTHING
        started_anew = record.started_at != known.record.started_at
        known.record = record
        known.signed = signed
        return Heard((record.id,), (record.id,) if started_anew else ())

    def _speaks(self, known: Known, now: float) -> Heard:
        known.heard = now
        if known.alive:
            return NOTHING
        known.alive = True
        return Heard((known.record.id,))
