"""What counts as broken: each invariant finds its own kind of failure, and forgives what cannot be helped."""

from typing import Any

import pytest

from chaos import invariants
from chaos.records import Collapse, Happening, Intrusion, Memory, Observation, Prompt, Records, Request, Write

TEXT = "def push(self, item):\n    self.items.append(item)\n    return len(self.items)\n\ndef pop(self): ..."
PROMPTS = {"a stack": Prompt("a stack", "Write a stack.", 40, True, "right", TEXT)}
DEADLINE = 30.0


def request(**changed: Any) -> Request:
    answered: dict[str, Any] = {
        "node": "node-1",
        "prompt": "a stack",
        "stream": True,
        "begin": 10.0,
        "end": 12.0,
        "outcome": "answered",
        "first": 10.5,
        "digest": "right",
        "tokens": 40,
    }
    return Request(**(answered | changed))


def happening(**changed: Any) -> Happening:
    killed: dict[str, Any] = {
        "kind": "node killed",
        "targets": ("node-1",),
        "begin": 11.0,
        "end": 15.0,
        "back": 18.0,
        "settled": 20.0,
        "converged": 5.0,
        "down": frozenset({"node-1"}),
    }
    return Happening(**(killed | changed))


def test_a_run_without_trouble_breaks_nothing() -> None:
    records = Records(seed=1, begin=0, end=30, serving=frozenset({"node-1"}), prompts=PROMPTS, requests=[request()])
    assert invariants.check(records, DEADLINE) == []


@pytest.mark.parametrize(
    "ended",
    [
        {"outcome": "broken", "code": "no_end"},
        {"outcome": "hung", "end": 70.0},
        {"outcome": "answered", "end": 50.0},
        {"outcome": "refused", "code": "no_replica", "end": 50.0},
    ],
)
def test_an_end_without_a_clear_word_or_in_time_is_broken(ended: dict[str, Any]) -> None:
    assert len(invariants.ends_clearly([request(**ended)], [], DEADLINE)) == 1


def test_a_killed_node_cannot_say_what_is_wrong_but_the_others_can() -> None:
    broken = [request(outcome="broken", node=node) for node in ("node-1", "node-2")]
    assert [one.node for one in invariants.ends_clearly(broken, [happening()], DEADLINE)] == ["node-2"]
    later = request(outcome="broken", begin=30.0, end=31.0)
    assert invariants.ends_clearly([later], [happening()], DEADLINE)


def test_clear_errors_end_a_request_but_a_running_node_has_to_serve() -> None:
    refused = request(outcome="refused", code="no_replica", node="node-2")
    assert invariants.ends_clearly([refused], [], DEADLINE) == []
    assert len(invariants.survivors_serve([refused], [happening()])) == 1
    assert invariants.survivors_serve([refused], [happening(lonely=frozenset({"node-2"}))]) == []
    assert invariants.survivors_serve([request(outcome="refused", code="overloaded")], []) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TEXT[:60] + TEXT[50:], "10 characters come twice"),
        (TEXT[:30] + TEXT[37:], "7 characters are missing"),
        (TEXT[:30] + "quite another thing follows here", "other words from character 30"),
        (TEXT[:30], "ends after 30 of"),
        (TEXT + "more", "goes on after its end"),
    ],
)
def test_a_wrong_text_is_described(text: str, said: str) -> None:
    (found,) = invariants.text_is_right([request(digest="wrong", text=text)], PROMPTS)
    assert said in found.what


def test_a_failed_stream_has_to_be_right_as_far_as_it_came() -> None:
    failed = {"outcome": "failed", "code": "replica_lost", "digest": "part"}
    assert invariants.text_is_right([request(**failed, text=TEXT[:20])], PROMPTS) == []
    assert invariants.text_is_right([request(**failed, text=TEXT[:20] + TEXT[10:40])], PROMPTS)


def test_tokens_are_counted_too() -> None:
    (found,) = invariants.text_is_right([request(tokens=39)], PROMPTS)
    assert "39 tokens" in found.what


def write(action: Any, subject: str, begin: float, end: float | None) -> Write:
    return Write(action=action, subject=subject, begin=begin, end=end)


def observed(*keys: str, alive: tuple[str, ...] = ()) -> list[Observation]:
    return [Observation(node="node-2", begin=100, end=101, keys=frozenset(keys), alive=frozenset(alive))]


def test_an_acknowledged_key_is_not_lost_and_a_revoked_one_does_not_come_back() -> None:
    writes = [write("key", "a", 1, 2), write("key", "b", 3, 4), write("revoke key", "b", 5, 6)]
    assert invariants.writes_are_kept(writes, observed("a")) == []
    assert "key a is lost" in invariants.writes_are_kept(writes, observed())[0].what
    assert "revoke key b is undone" in invariants.writes_are_kept(writes, observed("a", "b"))[0].what


def test_what_was_never_acknowledged_may_be_or_not() -> None:
    made = [write("key", "a", 1, None)]
    assert invariants.writes_are_kept(made, observed()) == invariants.writes_are_kept(made, observed("a")) == []
    revoked = [write("key", "a", 1, 2), write("revoke key", "a", 5, None)]
    assert invariants.writes_are_kept(revoked, observed()) == invariants.writes_are_kept(revoked, observed("a")) == []


def test_a_write_of_this_moment_may_still_be_on_its_way() -> None:
    assert invariants.writes_are_kept([write("key", "a", 99, 99.5)], observed()) == []
    assert (
        invariants.writes_are_kept([write("key", "a", 1, 2), write("revoke key", "a", 100.5, None)], observed()) == []
    )


def test_a_node_that_joined_stays_until_it_is_revoked() -> None:
    joined = [write("join", "guest", 1, 2)]
    assert invariants.writes_are_kept(joined, observed(alive=("guest",))) == []
    assert invariants.writes_are_kept(joined, observed())
    revoked = [*joined, write("revoke node", "guest", 3, 4)]
    assert invariants.writes_are_kept(revoked, observed()) == []
    assert invariants.writes_are_kept(revoked, observed(alive=("guest",)))


def test_a_revoked_node_has_a_second_to_go() -> None:
    seen = [Intrusion(node="guest", after=after, what="is connected") for after in (0.4, 1.6)]
    assert [one.time for one in invariants.revoked_stay_out(seen)] == [1.6]


def test_a_process_that_ends_by_itself_is_broken() -> None:
    assert invariants.nodes_stay_up([Collapse(node="node-1", time=3, words="bad_state")])


def memory(size: int, time: float, process: int = 1) -> Memory:
    return Memory(node="node-1", role="node", process=process, time=time, size=size << 20)


def test_memory_has_a_limit_and_does_not_grow_for_ever() -> None:
    steady = [memory(80 + number % 3, number * 10.0) for number in range(100)]
    leaking = [memory(60 + number, number * 10.0) for number in range(200)]
    assert invariants.memory_is_bounded(steady) == []
    assert "grew" in invariants.memory_is_bounded(leaking)[0].what
    assert "holds 900 MiB" in invariants.memory_is_bounded([memory(900, 1.0)])[0].what
    restarted = [memory(60, 0.0, process=1), memory(200, 1000.0, process=2)]
    assert invariants.memory_is_bounded(restarted) == []


def test_a_network_that_does_not_become_whole_is_broken() -> None:
    assert invariants.becomes_whole([happening()]) == []
    (found,) = invariants.becomes_whole([happening(converged=None, note="node-2 sees node-1 wrongly dead")])
    assert "wrongly dead" in found.what


def test_violations_are_in_order_and_counted_from_the_begin() -> None:
    requests = [request(outcome="broken", begin=begin, end=begin + 1) for begin in (110.0, 104.0)]
    records = Records(seed=1, begin=100, end=200, serving=frozenset(), prompts=PROMPTS, requests=requests)
    broken = [one for one in invariants.check(records, DEADLINE) if one.rule == "ends clearly"]
    assert [one.time for one in broken] == [4.0, 10.0]
    assert invariants.tally(broken)["ends clearly"] == 2
