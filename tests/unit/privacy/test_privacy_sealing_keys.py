"""Sealing keys live short, in memory, and remember what they opened for as long as they live."""

import pytest

from felloe.domain.errors import FelloeError
from felloe.privacy.sealing import KEY_GRACE, KEY_LIFETIME, SealingKeys, seal


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_key_is_replaced_after_an_hour_and_not_before() -> None:
    clock = Clock()
    keys = SealingKeys(clock)
    config = keys.config
    clock.now += KEY_LIFETIME - 1
    assert not keys.rotate_if_due()
    assert keys.config == config
    clock.now += 1
    assert keys.rotate_if_due()
    assert keys.config != config
    assert keys.config[0] != config[0]
    assert not keys.rotate_if_due()


def test_a_replaced_key_opens_for_two_minutes_more() -> None:
    clock = Clock()
    keys = SealingKeys(clock)
    early, _ = seal(keys.config, b"early")
    late, _ = seal(keys.config, b"late")
    clock.now += KEY_LIFETIME
    keys.rotate_if_due()
    new, _ = seal(keys.config, b"new")
    clock.now += KEY_GRACE - 1
    assert keys.open(early)[0] == b"early"
    clock.now += 1
    with pytest.raises(FelloeError, match="does not have"):
        keys.open(late)
    assert keys.open(new)[0] == b"new"


def test_a_replaced_key_still_refuses_what_it_opened() -> None:
    clock = Clock()
    keys = SealingKeys(clock)
    sealed, _ = seal(keys.config, b"question")
    keys.open(sealed)
    clock.now += KEY_LIFETIME
    keys.rotate_if_due()
    with pytest.raises(FelloeError) as refused:
        keys.open(sealed)
    assert refused.value.code == "replayed"
    clock.now += KEY_GRACE
    with pytest.raises(FelloeError) as refused:
        keys.open(sealed)
    assert refused.value.code == "unsealed"


def test_a_much_used_key_is_replaced_and_a_spent_one_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("felloe.privacy.sealing.KEY_REQUESTS", 3)
    keys = SealingKeys(Clock())
    config = keys.config
    for number in range(6):
        assert keys.open(seal(config, b"%d" % number)[0])[0] == b"%d" % number
    with pytest.raises(FelloeError, match="spent"):
        keys.open(seal(config, b"one too many")[0])
    assert keys.rotate_if_due()
    assert keys.open(seal(keys.config, b"fresh")[0])[0] == b"fresh"


def test_only_a_few_replaced_keys_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("felloe.privacy.sealing.KEY_REQUESTS", 1)
    keys = SealingKeys(Clock())
    waiting: list[bytes] = []
    for _ in range(5):
        waiting.append(seal(keys.config, b"waiting")[0])
        keys.open(seal(keys.config, b"question")[0])
        assert keys.rotate_if_due()
    for sealed in waiting[:2]:
        with pytest.raises(FelloeError, match="does not have"):
            keys.open(sealed)
    for sealed in waiting[2:]:
        assert keys.open(sealed)[0] == b"waiting"


def test_a_forged_request_takes_no_memory_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("felloe.privacy.sealing.KEY_REQUESTS", 1)
    keys = SealingKeys(Clock())
    sealed, _ = seal(keys.config, b"question")
    for position in range(1127, len(sealed)):
        with pytest.raises(FelloeError):
            keys.open(sealed[:position])
    assert not keys.rotate_if_due()


def test_a_new_start_opens_nothing_of_the_old_one() -> None:
    before, after = SealingKeys(Clock()), SealingKeys(Clock())
    sealed, _ = seal(before.config, b"question")
    with pytest.raises(FelloeError) as refused:
        after.open(sealed)
    assert refused.value.code == "unsealed"


def test_key_ids_go_round() -> None:
    clock = Clock()
    keys = SealingKeys(clock)
    seen: set[int] = set()
    for _ in range(257):
        seen.add(keys.config[0])
        clock.now += KEY_LIFETIME
        assert keys.rotate_if_due()
    assert seen == set(range(256))
