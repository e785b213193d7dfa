"""When an engine is taken for dead, hung or leaking, and when it is given up: pure decisions, also at random."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from felloe.engines.rules import (
    Pulse,
    Quarantine,
    Restart,
    RestartPolicy,
    Signs,
    Work,
    after_crash,
    after_failed_start,
    after_look,
    death,
    hang,
    last_words,
    may_blame_request,
    memory_bound,
    must_shed,
    read_work,
    stands_still,
)

POLICY = RestartPolicy()
MIB = 1024 * 1024
LONGEST_LOOK = POLICY.probe_every + 2 * POLICY.probe_seconds + POLICY.late_after
SILENT = Signs(alive=False, decoding=False)
BUSY = Signs(alive=True, decoding=False)
WELL = Signs(alive=True, decoding=True)


def looks(signs: Signs, count: int, elapsed: float = 9.0, pulse: Pulse | None = None) -> Pulse:
    pulse = pulse or Pulse()
    for _ in range(count):
        pulse = after_look(pulse, elapsed, signs, POLICY)
    return pulse


def test_a_silent_process_is_hung_after_its_time_and_not_before() -> None:
    assert hang(looks(SILENT, 2), POLICY) is None
    assert "no sign of life for 27 s" in (hang(looks(SILENT, 3), POLICY) or "")


def test_a_batch_of_minutes_is_no_hang_while_the_process_answers() -> None:
    assert hang(looks(BUSY, 99), POLICY) is None


def test_work_that_stands_still_for_longer_than_any_request_may_take_is_a_hang() -> None:
    assert "no part of it" in (hang(looks(BUSY, 101), POLICY) or "")


def test_one_sign_of_progress_counts_anew() -> None:
    pulse = looks(BUSY, 99)
    assert after_look(pulse, 9.0, WELL, POLICY) == Pulse()


def test_one_answer_makes_a_silent_process_alive_again() -> None:
    pulse = after_look(looks(SILENT, 2), 9.0, BUSY, POLICY)
    assert pulse.deaf_for == 0
    assert pulse.stuck_for == 27


@pytest.mark.parametrize("asleep", [LONGEST_LOOK + 0.1, 3600.0, 1e9])
def test_a_watcher_that_was_asleep_knows_nothing_and_counts_anew(asleep: float) -> None:
    assert after_look(looks(SILENT, 2), asleep, SILENT, POLICY) == Pulse()


@given(st.lists(st.tuples(st.floats(0, 1e6), st.booleans(), st.booleans()), max_size=60))
def test_nothing_is_a_hang_but_silence_that_the_watcher_was_awake_for(seen: list[tuple[float, bool, bool]]) -> None:
    pulse = Pulse()
    silent = still = 0.0
    for elapsed, alive, decoding in seen:
        pulse = after_look(pulse, elapsed, Signs(alive, decoding), POLICY)
        asleep = elapsed > LONGEST_LOOK
        silent = 0.0 if asleep or alive or decoding else silent + elapsed
        still = 0.0 if asleep or decoding else still + elapsed
        assert (hang(pulse, POLICY) is not None) == (silent > POLICY.deaf_after or still > POLICY.hung_after)


@given(st.lists(st.floats(0.1, LONGEST_LOOK), min_size=1, max_size=400))
def test_a_silent_process_is_always_found_in_bounded_time(elapsed: list[float]) -> None:
    pulse, total = Pulse(), 0.0
    for each in elapsed:
        pulse = after_look(pulse, each, SILENT, POLICY)
        total += each
        if hang(pulse, POLICY):
            break
        assert total <= POLICY.deaf_after
    assert total <= POLICY.deaf_after + LONGEST_LOOK


def test_work_is_read_from_the_metrics() -> None:
    text = b"# HELP x\nllamacpp:n_decode_total 21\nllamacpp:requests_processing 2\nllamacpp:requests_deferred 7\n"
    assert read_work(text) == Work(requests=2, batches=21)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe\x00",
        b"llamacpp:n_decode_total 21\n",
        b"llamacpp:n_decode_total x\nllamacpp:requests_processing 1",
    ],
)
def test_metrics_that_do_not_tell_hang_nobody(text: bytes) -> None:
    assert read_work(text) is None
    assert not stands_still(Work(1, 1), read_work(text))
    assert not stands_still(read_work(text), Work(1, 1))


def test_only_work_that_does_not_move_stands_still() -> None:
    assert stands_still(Work(1, 5), Work(1, 5))
    assert not stands_still(Work(1, 5), Work(1, 6))
    assert not stands_still(Work(1, 5), Work(0, 5))


def test_the_memory_bound_comes_from_the_start_or_from_the_owner() -> None:
    assert memory_bound(1000 * MIB, 0, 0, POLICY) == 2512 * MIB
    assert memory_bound(1000 * MIB, 700 * MIB, 3, POLICY) == 700 * MIB


def test_each_restart_for_its_size_allows_twice_as_much_up_to_four_times() -> None:
    bounds = [memory_bound(100 * MIB, 0, leaks, POLICY) // MIB for leaks in range(5)]
    assert bounds == [712, 1424, 2848, 2848, 2848]


def test_an_idle_child_is_shed_at_the_bound_and_a_busy_one_later() -> None:
    assert not must_shed(100, 100, idle=True)
    assert must_shed(101, 100, idle=True)
    assert not must_shed(150, 100, idle=False)
    assert must_shed(151, 100, idle=False)


def test_a_damaged_file_is_not_tried_again() -> None:
    assert after_failed_start(1, "bad_model_file", POLICY, 0.5) == Quarantine(1)


def test_other_failed_starts_are_tried_ever_more_slowly_and_then_given_up() -> None:
    decisions = [after_failed_start(count, "engine_start_failed", POLICY, 1.0) for count in range(1, 12)]
    delays = [decision.delay for decision in decisions if isinstance(decision, Restart)]
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0]
    assert decisions[-1] == Quarantine(11)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-9, "signal 9 (SIGKILL), perhaps because memory was short"),
        (-11, "signal 11 (SIGSEGV)"),
        (-6, "signal 6 (SIGABRT)"),
        (-200, "signal 200 (unknown)"),
        (3, "exit code 3"),
        (None, "exit code None"),
    ],
)
def test_a_death_is_told_in_words(code: int | None, words: str) -> None:
    assert words in death(code)


def test_a_request_may_be_blamed_for_a_crash_but_not_for_a_kill() -> None:
    assert [code for code in (-11, -6, 3, 0, -9, -15) if may_blame_request(code)] == [-11, -6, 3, 0]


def test_the_last_words_are_the_last_line_that_quotes_nobody() -> None:
    lines = [
        "0.00.010.195 E ggml_cuda: out of memory at '/home/me/secret/file.gguf'",
        "0.03.607.987 E srv    send_error: [left out: may quote a request]",
        "",
    ]
    assert last_words(lines) == "; its log ends: out of memory at file.gguf"
    assert last_words([]) == ""


class Healing(RuleBasedStateMachine):
    """An engine that crashes and fails to start at random times: what is decided never depends on luck alone."""

    @initialize(allowed=st.integers(0, 4), window=st.sampled_from([60.0, 600.0]))
    def begin(self, allowed: int, window: float) -> None:
        self.policy = RestartPolicy(crashes_allowed=allowed, crash_window=window)
        self.now = 0.0
        self.crashes: list[float] = []
        self.failures = 0
        self.state = "ready"
        self.delay: float | None = None

    def _decide(self, decision: Restart | Quarantine) -> None:
        self.state = "failed" if isinstance(decision, Quarantine) else "starting"
        self.delay = decision.delay if isinstance(decision, Restart) else None

    @precondition(lambda self: self.state != "failed")
    @rule(seconds=st.floats(0, 2000))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.state == "ready")
    @rule(random=st.floats(0, 1, exclude_max=True))
    def crash(self, random: float) -> None:
        self.crashes.append(self.now)
        recent = [at for at in self.crashes if self.now - at <= self.policy.crash_window]
        self._decide(after_crash(self.crashes, self.now, self.policy, random))
        assert (self.state == "failed") == (len(recent) > self.policy.crashes_allowed)

    @precondition(lambda self: self.state == "starting")
    @rule(random=st.floats(0, 1, exclude_max=True))
    def start_fails(self, random: float) -> None:
        self.failures += 1
        self._decide(after_failed_start(self.failures, "engine_start_failed", self.policy, random))
        assert (self.state == "failed") == (self.failures > self.policy.starts_allowed)

    @precondition(lambda self: self.state == "starting")
    @rule()
    def start_succeeds(self) -> None:
        self.now += self.delay or 0.0
        self.failures = 0
        self.state = "ready"

    @precondition(lambda self: self.state == "failed")
    @rule()
    def owner_loads_again(self) -> None:
        self.crashes, self.failures, self.state = [], 0, "ready"

    @invariant()
    def delays_are_bounded(self) -> None:
        if getattr(self, "state", "") == "starting":
            assert self.delay is not None
            assert 0.75 * self.policy.first_delay <= self.delay <= self.policy.longest_delay
            assert math.isfinite(self.delay)


TestHealing = Healing.TestCase
TestHealing.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
