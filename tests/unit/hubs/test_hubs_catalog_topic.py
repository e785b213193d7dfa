"""Every node may follow the catalogue itself, and hears of the rest only that it has changed."""

from types import SimpleNamespace
from typing import Any

import pytest

from felloe.domain.errors import FelloeError
from felloe.hubs.records import CATALOG
from felloe.hubs.store import Entry
from felloe.hubs.topics import CATALOG_NEWS, PUBLIC, Topics


class SomeState:
    """What `Topics` asks of a hub's state."""

    def __init__(self, entries: dict[str, Entry]) -> None:
        self.entries = entries
        self.generations = SimpleNamespace(current=SimpleNamespace(number=3))
        self.watched: dict[str, Any] = {}

    def entry(self, key: str) -> Entry | None:
        return self.entries.get(key)

    def items(self, prefix: str) -> dict[str, bytes]:
        return {key: one.value for key, one in self.entries.items() if key.startswith(prefix) and one.value is not None}

    def on_change(self, prefix: str, callback: Any) -> None:
        self.watched[prefix] = callback


def topics(**entries: Entry) -> Topics:
    state = SomeState({key.replace("_", "-").replace("--", "."): entry for key, entry in entries.items()})
    return Topics(state, SimpleNamespace())  # type: ignore[arg-type]


def test_the_news_of_the_book_is_its_newest_write_and_nothing_else():
    told = topics(
        catalog_decision__0000=Entry(b"secret", 7), catalog_publication__0003=Entry(b"x", 9), catalog=Entry(b"b", 12)
    )
    news = told.value(CATALOG_NEWS)
    assert (news.epoch, news.revision, news.value) == (3, 9, b"9")
    assert told.value(CATALOG).value == b"b"
    assert topics().value(CATALOG_NEWS).value is None


def test_what_waits_is_no_topic():
    assert {CATALOG, CATALOG_NEWS} <= set(PUBLIC)
    with pytest.raises(FelloeError):
        topics().value("catalog-decision.0000")
