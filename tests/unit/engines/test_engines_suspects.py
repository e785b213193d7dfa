"""A request that was under way when its engine crashed is remembered, and nothing of its text is."""

from typing import Any

from felloe.domain.ids import ModelName, RequestId
from felloe.domain.requests import InferenceRequest, TokenResume
from felloe.engines.suspects import Suspects


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def request(prompt: str = "secret", **changes: Any) -> InferenceRequest:
    fields: dict[str, Any] = {"id": RequestId("cmpl-1"), "created": 1, "deadline": 60.0, **changes}
    return InferenceRequest(kind="completion", model=ModelName("m"), body={"prompt": prompt}, **fields)


def crash(suspects: Suspects, *requests: InferenceRequest, blame: bool = True) -> None:
    for each in requests:
        suspects.broken_off(each)
    suspects.engine_buried(blame=blame)


def test_crashes_are_counted_by_what_is_asked_not_by_who_asks() -> None:
    suspects = Suspects(600.0, Clock())
    crash(suspects, request())
    crash(suspects, request(id=RequestId("cmpl-2"), created=7, deadline=3.0, resume=TokenResume((1, 2))))
    assert suspects.crashes(request()) == 2
    assert suspects.crashes(request("other")) == 0


def test_one_crash_counts_once_however_often_the_request_was_there() -> None:
    suspects = Suspects(600.0, Clock())
    crash(suspects, request(), request())
    assert suspects.crashes(request()) == 1


def test_a_kill_from_outside_is_held_against_nobody() -> None:
    suspects = Suspects(600.0, Clock())
    crash(suspects, request(), blame=False)
    crash(suspects)
    assert suspects.crashes(request()) == 0


def test_suspicion_ends_with_the_window() -> None:
    clock = Clock()
    suspects = Suspects(600.0, clock)
    crash(suspects, request())
    clock.now = 601.0
    assert suspects.crashes(request()) == 0


def test_what_broke_off_long_before_the_crash_is_not_blamed() -> None:
    clock = Clock()
    suspects = Suspects(600.0, clock)
    suspects.broken_off(request())
    clock.now = 601.0
    suspects.engine_buried(blame=True)
    assert suspects.crashes(request()) == 0


def test_memory_is_bounded_and_holds_no_text() -> None:
    suspects = Suspects(600.0, Clock())
    for number in range(1000):
        crash(suspects, request(f"secret {number}"))
    assert suspects.crashes(request("secret 999")) == 1
    assert len(vars(suspects)["_crashes"]) == 256
    assert "secret" not in repr(vars(suspects))


def test_digests_of_two_processes_cannot_be_compared() -> None:
    found = []
    for _ in range(2):
        suspects = Suspects(600.0, Clock())
        crash(suspects, request())
        found.append([*vars(suspects)["_crashes"]])
    assert found[0] != found[1]
