"""What a request stream allows, decided without clock, network or randomness.

An answer is a row of messages, numbered from 0. `Receipt` is the asker's side: it takes the next number, drops what it
already has and calls everything else a gap. `Allowance` is the answerer's side: how much it may still send. `Ledger`
is the asker's account of what it has granted: what was used up by its reader is granted anew, half a window at a time.
Grants are totals since the beginning, so that a credit that comes twice or late does no harm. `Assembly` puts a
request together from its parts. `fate` says what becomes of an answer that is silent.
"""

from collections.abc import Iterator
from enum import Enum

from felloe.mesh.stream_wire import Kind, Opening

WINDOW_MESSAGES = 256
WINDOW_BYTES = 1024 * 1024
PART_BYTES = 256 * 1024
MAX_MESSAGE_BYTES = 8 * 1024 * 1024
MAX_REQUEST_BYTES = 8 * 1024 * 1024
CREDIT_SECONDS = 5.0
ASK_AFTER_SECONDS = 0.3
ASK_AGAIN_SECONDS = 0.5
SUSPECT_SECONDS = 1.0

# Members of an enum cost more to compare than numbers, and this is done for every message.
_CONTENT = (int(Kind.DATA), int(Kind.PART))
_END, _KEEPALIVE = int(Kind.END), int(Kind.KEEPALIVE)


class Verdict(Enum):
    """What to do with a message that came in."""

    TAKE = "take"
    DROP = "drop"
    END = "end"
    BROKEN = "broken"
    STRANGE = "strange"


class Fate(Enum):
    """What to do about an answer that is coming in."""

    WAIT = "wait"
    ASK = "ask"
    FAIL = "fail"


def fate(silent_for: float, untold_for: float, hub_silent_for: float, most_silence: float) -> Fate:
    """Judge an answer that was silent, and whose answerer was told no credit, for so many seconds.

    A silent answerer is asked whether it goes on: if nobody listens any more, the server says so at once. Beyond
    `most_silence` it is given up, unless this node's own hub is silent, too: then nobody could be heard.
    """
    if silent_for > most_silence and hub_silent_for < SUSPECT_SECONDS:
        return Fate.FAIL
    asks = silent_for > ASK_AFTER_SECONDS and untold_for > ASK_AGAIN_SECONDS
    return Fate.ASK if asks or untold_for > CREDIT_SECONDS else Fate.WAIT


def missed_seconds(elapsed: float, tick: float) -> float:
    """How long this process did not run, or hardly, when `elapsed` seconds passed instead of `tick`.

    Whoever was suspended or stalled has heard nobody; that is not the others' silence.
    """
    return elapsed - tick if elapsed > 2 * tick else 0.0


class Receipt:
    """The asker's place in an answer."""

    __slots__ = ("next",)

    def __init__(self) -> None:
        self.next = 0

    def judge(self, kind: int, sequence: int) -> Verdict:
        """Judge a data, part, end or keepalive message; anything else is no answer."""
        expected = self.next
        if kind in _CONTENT:
            if sequence == expected:
                self.next = expected + 1
                return Verdict.TAKE
        elif kind == _END:
            if sequence == expected:
                self.next = expected + 1
                return Verdict.END
        elif kind != _KEEPALIVE:
            return Verdict.STRANGE
        return Verdict.DROP if sequence <= expected else Verdict.BROKEN


class Allowance:
    """What the answerer may send: it goes on while both totals granted are above what was sent.

    A message may thus overdraw the bytes once, by less than `PART_BYTES`.
    """

    __slots__ = ("messages", "sent_bytes", "sent_messages", "size")

    def __init__(self, messages: int, size: int) -> None:
        self.messages = messages
        self.size = size
        self.sent_messages = 0
        self.sent_bytes = 0

    def may_send(self) -> bool:
        """Whether one more message may go."""
        return self.sent_messages < self.messages and self.sent_bytes < self.size

    def spend(self, size: int) -> int:
        """Count one message of `size` bytes; its number."""
        number = self.sent_messages
        self.sent_messages = number + 1
        self.sent_bytes += size
        return number

    def grant(self, messages: int, size: int) -> None:
        """Take note of new totals; they never shrink."""
        self.messages = max(self.messages, messages)
        self.size = max(self.size, size)


class Ledger:
    """What the asker has granted, what has come, and what its reader has used up."""

    __slots__ = ("granted_bytes", "granted_messages", "held_bytes", "held_messages", "used_bytes", "used_messages")

    def __init__(self) -> None:
        self.granted_messages = WINDOW_MESSAGES
        self.granted_bytes = WINDOW_BYTES
        self.used_messages = 0
        self.used_bytes = 0
        self.held_bytes = 0
        self.held_messages = 0

    def hold(self, size: int) -> bool:
        """Count a message that waits for the reader; False when the answerer sent more than it may."""
        self.held_bytes += size
        self.held_messages += 1
        return (
            size <= PART_BYTES
            and self.used_messages + self.held_messages <= self.granted_messages
            and self.used_bytes + self.held_bytes <= self.granted_bytes + PART_BYTES
        )

    def use(self, size: int) -> bool:
        """Count a message that the reader took; whether it is time to grant more."""
        self.held_bytes -= size
        self.held_messages -= 1
        self.used_bytes += size
        self.used_messages += 1
        return (
            self.granted_messages - self.used_messages <= WINDOW_MESSAGES // 2
            or self.granted_bytes - self.used_bytes <= WINDOW_BYTES // 2
        )

    def renew(self) -> None:
        """Grant a whole window beyond what was used."""
        self.granted_messages = self.used_messages + WINDOW_MESSAGES
        self.granted_bytes = self.used_bytes + WINDOW_BYTES


class Assembly:
    """A request whose parts are coming in."""

    def __init__(self, opening: Opening, first: bytes) -> None:
        self._total = opening.total
        self._parts = [first]
        self._have = len(first)

    @staticmethod
    def accepts(opening: Opening, first: bytes) -> bool:
        """Whether a request may begin like this."""
        return opening.messages > 0 and opening.bytes > 0 and len(first) <= opening.total <= MAX_REQUEST_BYTES

    @property
    def complete(self) -> bool:
        """Whether all parts are here."""
        return self._have == self._total

    def add(self, sequence: int, part: bytes) -> bool:
        """Take the next part; False when it is not the next, is empty, or is more than was announced."""
        if sequence != len(self._parts) or not part or self._have + len(part) > self._total:
            return False
        self._parts.append(part)
        self._have += len(part)
        return True

    def whole(self) -> bytes:
        """The request."""
        return b"".join(self._parts)


def split(data: bytes, part_bytes: int) -> Iterator[bytes]:
    """The parts of `data`, in order; one empty part when it is empty."""
    for start in range(0, max(len(data), 1), part_bytes):
        yield data[start : start + part_bytes]
