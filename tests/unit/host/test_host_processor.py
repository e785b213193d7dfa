"""How much of its processors' time a machine has left."""

import pytest

from felloe.host import processor
from felloe.host.processor import IdleShare


def test_the_share_is_that_of_the_last_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now, times = 100.0, (40.0, 80.0)
    monkeypatch.setattr(processor, "_times", lambda: times)
    share = IdleShare(lambda: now)
    now, times = 100.5, (41.0, 81.0)
    assert share() == 0, "nothing is known before the first second is over"
    now, times = 101.0, (41.5, 82.0)
    assert share() == 0.75
    now, times = 102.0, (41.5, 84.0)
    assert share() == 0


def test_a_clock_of_the_kernel_that_went_back_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now, times = 100.0, (40.0, 80.0)
    monkeypatch.setattr(processor, "_times", lambda: times)
    share = IdleShare(lambda: now)
    now, times = 101.0, (30.0, 70.0)
    assert share() == 0


def test_this_machine_has_a_share() -> None:
    now = 100.0
    share = IdleShare(lambda: now)
    now = 101.0
    assert 0 <= share() <= 1
