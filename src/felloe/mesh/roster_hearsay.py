"""What hubs tell about other nodes: believed as far as only a hub can know it, and never a record without signature."""

import logging
from collections.abc import Callable

from felloe.domain.ids import NodeId
from felloe.mesh.roster_snapshots import Snapshots
from felloe.mesh.roster_wire import (
    BadRecord,
    Digest,
    RosterEntry,
    Standing,
    StandingsPage,
    check_load,
    check_standing,
    decode_record,
)
from felloe.mesh.rules import NOTHING, Census, Heard

logger = logging.getLogger(__name__)


class Hearsay:
    """Enters it into the census and hands what came of it to `note`; `want` is told whose record is lacking."""

    def __init__(
        self,
        this: NodeId,
        census: Census,
        snapshots: Snapshots,
        *,
        note: Callable[[Heard], None],
        want: Callable[[NodeId], None],
        clock: Callable[[], float],
    ) -> None:
        self._this = this
        self._census = census
        self._snapshots = snapshots
        self._note = note
        self._want = want
        self._clock = clock
        self.banned: frozenset[NodeId] = frozenset()

    def take_digest(self, digest: Digest) -> None:
        """A hub told how others stand; `digest` has been checked, but for its records."""
        now = self._clock()
        heard = [self._hear_news(signed, now) for signed in digest.news]
        heard += [self._hear_standing(standing, now) for standing in digest.changes]
        for standing in digest.in_passing:
            self._look_for_record(standing)
            heard.append(self._hear_standing(standing, now, in_passing=True))
        self._note(_together(heard))

    def take_standings(self, page: StandingsPage) -> None:
        """A hub answered how everybody stands."""
        now = self._clock()
        heard: list[Heard] = []
        for standing in page.standings:
            try:
                check_standing(standing)
            except BadRecord as error:
                logger.warning("refused a standing of a hub's page: %s", error)
                continue
            self._look_for_record(standing)
            heard.append(self._hear_standing(standing, now))
        self._note(_together(heard))

    def take_entry(self, entry: RosterEntry) -> NodeId:
        """A hub answered with a node's record; the entry's id, or '' when it is refused."""
        try:
            record = decode_record(entry.signed)
            check_load(entry.load)
        except BadRecord as error:
            logger.warning("refused an entry of a hub's roster: %s", error)
            return NodeId("")
        if not self._ignores(record.id):
            silence = None if entry.silence is None else max(entry.silence, 0.0)
            self._note(self._census.hear_of(record, entry.signed, entry.load, silence, self._clock()))
        return record.id

    def _hear_news(self, signed: bytes, now: float) -> Heard:
        try:
            record = decode_record(signed)
        except BadRecord as error:
            logger.warning("refused a record in a hub's digest: %s", error)
            return NOTHING
        return NOTHING if self._ignores(record.id) else self._census.hear_news(record, signed, now)

    def _hear_standing(self, standing: Standing, now: float, *, in_passing: bool = False) -> Heard:
        node = NodeId(standing.id)
        if self._ignores(node):
            return NOTHING
        self._snapshots.seen(node)
        return self._census.hear_standing(standing, now, in_passing=in_passing)

    def _look_for_record(self, standing: Standing) -> None:
        node = NodeId(standing.id)
        if not self._ignores(node) and self._census.lacks_record(standing):
            self._want(node)

    def _ignores(self, node: NodeId) -> bool:
        return node == self._this or node in self.banned


def _together(heard: list[Heard]) -> Heard:
    """What came of several messages, as of one."""
    return Heard(
        tuple(node for each in heard for node in each.changed),
        tuple(node for each in heard for node in each.lost),
        tuple(node for each in heard for node in each.moved),
    )
