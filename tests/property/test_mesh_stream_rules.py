"""Whatever the way between two nodes does to messages, an answer is a true beginning of what was sent, or the whole."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from felloe.domain.ids import NodeId
from felloe.mesh.stream_rules import (
    MAX_REQUEST_BYTES,
    PART_BYTES,
    WINDOW_BYTES,
    WINDOW_MESSAGES,
    Allowance,
    Assembly,
    Ledger,
    Receipt,
    Verdict,
    split,
)
from felloe.mesh.stream_wire import (
    HEADER,
    BadMessage,
    Kind,
    Opening,
    Refusal,
    encode,
    encode_flow,
    encode_open,
    encode_refusal,
    parse_flow,
    parse_header,
    parse_open,
    parse_refusal,
    parse_reply_subject,
    reply_subject,
)

SIZES = st.sampled_from([0, 1, 100, PART_BYTES // 2, PART_BYTES])


class Stream(RuleBasedStateMachine):
    """An answerer, an asker, and a way between them that may lose, repeat and delay in both directions."""

    @initialize()
    def begin(self) -> None:
        self.allowance = Allowance(WINDOW_MESSAGES, WINDOW_BYTES)
        self.receipt = Receipt()
        self.ledger = Ledger()
        self.way: deque[tuple[Kind, int, int]] = deque()
        self.credits: deque[tuple[int, int]] = deque()
        self.waiting: deque[tuple[int, int]] = deque()
        self.sent: list[int] = []
        self.read: list[int] = []
        self.harmed = self.broken = self.finished = self.ended = False

    @precondition(lambda self: not self.finished)
    @rule(size=SIZES, times=st.integers(1, 300))
    def send(self, size: int, times: int) -> None:
        for _ in range(times):
            if not self.allowance.may_send():
                return
            number = self.allowance.spend(size)
            assert number == len(self.sent)
            self.sent.append(size)
            self.way.append((Kind.DATA, number, size))

    @precondition(lambda self: not self.finished)
    @rule()
    def keepalive(self) -> None:
        self.way.append((Kind.KEEPALIVE, self.allowance.sent_messages, 0))

    @precondition(lambda self: not self.finished)
    @rule()
    def finish(self) -> None:
        self.finished = True
        self.way.append((Kind.END, self.allowance.sent_messages, 0))

    @precondition(lambda self: bool(self.way))
    @rule(times=st.integers(1, 400))
    def arrive(self, times: int) -> None:
        for _ in range(min(times, len(self.way))):
            self._take(*self.way.popleft())

    @precondition(lambda self: bool(self.way))
    @rule()
    def repeat(self) -> None:
        self.way.append(self.way[0])
        self._take(*self.way[0])

    @precondition(lambda self: bool(self.way))
    @rule()
    def lose(self) -> None:
        kind, _, _ = self.way.popleft()
        self.harmed = self.harmed or kind is not Kind.KEEPALIVE

    @precondition(lambda self: len(self.way) > 1)
    @rule()
    def overtake(self) -> None:
        self.way.rotate(1)
        self.harmed = True

    @precondition(lambda self: bool(self.waiting))
    @rule(times=st.integers(1, 300))
    def consume(self, times: int) -> None:
        for _ in range(min(times, len(self.waiting))):
            number, size = self.waiting.popleft()
            self.read.append(size)
            assert number == len(self.read) - 1
            if self.ledger.use(size):
                self.ledger.renew()
                self.credits.append((self.ledger.granted_messages, self.ledger.granted_bytes))

    @rule()
    def catch_up(self) -> None:
        """All that is under way arrives and is read."""
        self.arrive(len(self.way))
        self.consume(len(self.waiting))

    @precondition(lambda self: bool(self.credits))
    @rule(twice=st.booleans(), lost=st.booleans())
    def credit(self, twice: bool, lost: bool) -> None:
        granted = self.credits.popleft()
        if not lost:
            self.allowance.grant(*granted)
        if twice:
            self.credits.append(granted)

    @rule()
    def renew(self) -> None:
        """The totals are told again from time to time, so a lost credit stops nothing for long."""
        self.allowance.grant(self.ledger.granted_messages, self.ledger.granted_bytes)

    def _take(self, kind: Kind, number: int, size: int) -> None:
        if self.broken or self.ended:
            return
        expected = self.receipt.next
        verdict = self.receipt.judge(kind, number)
        assert (verdict is Verdict.BROKEN) == (number > expected)
        if verdict is Verdict.TAKE:
            assert self.ledger.hold(size)
            self.waiting.append((number, size))
        elif verdict is Verdict.END:
            self.ended = True
        elif verdict is Verdict.BROKEN:
            self.broken = True

    @invariant()
    def what_is_read_was_sent_in_this_order(self) -> None:
        if hasattr(self, "read"):
            heard = self.read + [size for _, size in self.waiting]
            assert heard == self.sent[: len(heard)]

    @invariant()
    def an_end_means_the_whole(self) -> None:
        if getattr(self, "ended", False):
            assert len(self.read) + len(self.waiting) == len(self.sent)

    @invariant()
    def nothing_breaks_without_harm(self) -> None:
        if getattr(self, "broken", False):
            assert self.harmed

    @invariant()
    def what_waits_is_bounded(self) -> None:
        if hasattr(self, "waiting"):
            assert len(self.waiting) <= WINDOW_MESSAGES
            assert sum(size for _, size in self.waiting) <= WINDOW_BYTES + PART_BYTES

    @invariant()
    def an_empty_stream_never_stalls(self) -> None:
        """When all that was sent is read, the newest totals allow more."""
        if hasattr(self, "read") and len(self.read) == len(self.sent):
            assert self.ledger.granted_messages > self.allowance.sent_messages
            assert self.ledger.granted_bytes > self.allowance.sent_bytes


TestStream = Stream.TestCase


@given(st.binary(max_size=5000), st.integers(1, 700))
def test_what_is_split_is_put_together_again(data: bytes, part_bytes: int) -> None:
    first, *others = split(data, part_bytes)
    opening = Opening(1, 1, len(data))
    assert Assembly.accepts(opening, first)
    assembly = Assembly(opening, first)
    for number, part in enumerate(others, start=1):
        assert not assembly.complete
        assert assembly.add(number, part)
    assert assembly.complete
    assert assembly.whole() == data


@given(st.binary(max_size=100), st.lists(st.tuples(st.integers(0, 5), st.binary(max_size=50)), max_size=8))
def test_no_row_of_parts_makes_more_than_was_announced(first: bytes, parts: list[tuple[int, bytes]]) -> None:
    assembly = Assembly(Opening(1, 1, 120), first)
    taken = 1
    for number, part in parts:
        if assembly.add(number, part):
            assert number == taken
            taken += 1
    assert len(assembly.whole()) <= 120
    assert assembly.complete == (len(assembly.whole()) == 120)


def test_a_request_beyond_the_limit_is_not_begun() -> None:
    assert not Assembly.accepts(Opening(1, 1, MAX_REQUEST_BYTES + 1), b"")


@given(st.sampled_from(list(Kind)), st.integers(0, 2**64 - 1), st.binary(max_size=100))
def test_a_header_says_what_was_written(kind: Kind, sequence: int, body: bytes) -> None:
    message = encode(kind, sequence, body)
    assert parse_header(message) == (kind, sequence)
    assert message[HEADER.size :] == body


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=100))
def test_an_opening_says_what_was_written(messages: int, size: int, total: int, part: bytes) -> None:
    assert parse_open(encode_open(Opening(messages, size, total), part)) == (Opening(messages, size, total), part)


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_a_credit_says_what_was_written(stream: bytes, messages: int, size: int) -> None:
    message = encode_flow(Kind.CREDIT, stream.hex(), messages, size)
    assert parse_header(message) == (Kind.CREDIT, messages)
    assert parse_flow(message) == (stream.hex(), size)


@given(st.text(max_size=40), st.none() | st.floats(0, 1000))
def test_a_refusal_says_what_was_written(code: str, retry_after: float | None) -> None:
    message = encode_refusal(Refusal(code, retry_after))
    assert parse_refusal(message[HEADER.size :]) == Refusal(code, retry_after)


@given(st.binary(max_size=200))
def test_no_bytes_surprise_the_parsers(data: bytes) -> None:
    for parse in (parse_header, parse_open, parse_flow, parse_refusal):
        try:
            parse(data)
        except BadMessage:
            continue


@given(st.text(alphabet="abc237_INBOX.*>-0 f", max_size=80))
def test_only_a_stream_in_somebodys_inbox_is_a_reply_subject(subject: str) -> None:
    try:
        asker, stream = parse_reply_subject(subject)
    except BadMessage:
        return
    assert subject == reply_subject(asker, stream)


def test_a_reply_subject_comes_back_as_its_parts() -> None:
    asker = NodeId("a" * 26)
    assert parse_reply_subject(reply_subject(asker, "0f" * 16)) == (asker, "0f" * 16)
    for bad in ("0F" * 16, "0" * 31, "0" * 33, "0" * 32 + "\n", "x." + "0" * 32, "*"):
        with pytest.raises(BadMessage):
            parse_reply_subject(f"_INBOX_{asker}.{bad}")
