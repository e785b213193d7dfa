"""What owners are shown: every standing, who said what, who is waited for."""

import pytest

from felloe.catalog.approval.rules import Subject
from felloe.domain.approval import (
    Approvals,
    Approved,
    Curator,
    Decision,
    Listing,
    Publication,
    Verdict,
    Withdrawn,
)
from felloe.domain.ids import ContentId, ModelName, NodeId
from felloe.node.catalog_rows import Words, catalog_rows, decision_rows, waiting_changes

ANNA, BOB, EVE = (
    Curator(name=name, key=bytes([number]) * 32, since=1) for number, name in enumerate(("anna", "bob", "eve"))
)
GONE = b"\x09" * 32
NOW, LATER = 100.0, 1e9


def listing(name: str) -> Listing:
    return Listing(
        content=ContentId(name.encode().hex().ljust(64, "0")),
        name=ModelName(name),
        sha256=bytes(32),
        length=1,
        size=7,
        made_by=NodeId("a" * 26),
    )


KEPT, OLD, NEW = listing("kept"), listing("old"), listing("new")
PUBLISHED = [Publication(listing=NEW, published_at=5)]


def known(expires_at: float = LATER) -> Approvals:
    return Approvals(
        catalog=bytes(32),
        root_version=1,
        targets_version=3,
        timestamp_version=3,
        expires_at=expires_at,
        threshold=2,
        curators=(ANNA, BOB, EVE),
        approved={KEPT.content: Approved(listing=KEPT, approved_at=2, approved_by=("anna", "bob"), since=2)},
        withdrawn={OLD.content: Withdrawn(content=OLD.content, name=OLD.name, reason="it leaks", at=3, since=3)},
    )


def word(by: Curator, verdict: Verdict, about: Listing | None = None, **fields: object) -> Decision:
    named = {} if about is None else {"content": about.content, "name": about.name}
    return Decision(
        catalog=bytes(32),
        verdict=verdict,
        by=by.key,
        seen_root=1,
        seen_targets=3,
        made_at=4,
        **named,
        **fields,  # type: ignore[arg-type]
    )


def words(*decisions: Decision) -> Words:
    found: dict[Subject, dict[bytes, Decision]] = {}
    for one in decisions:
        kind = "content" if one.content else "curator" if one.curator else "threshold"
        name = one.content or one.curator.hex()
        found.setdefault(Subject(kind, name), {})[one.by] = one
    return found


def rows(
    said: Words, publications: list[Publication] = PUBLISHED, expires_at: float = LATER
) -> dict[str, tuple[object, ...]]:
    made = catalog_rows(known(expires_at), said, publications, NOW, lambda _: "attic")
    return {row.name: (row.standing, row.approved_by, row.rejected_by, row.waits_for, row.reason) for row in made}


def test_every_standing_is_shown() -> None:
    assert rows(words()) == {
        "kept": ("approved", ("anna", "bob"), (), (), ""),
        "new": ("waiting", (), (), ("anna", "bob", "eve"), ""),
        "old": ("withdrawn", (), (), (), "it leaks"),
    }
    assert rows(words(), expires_at=NOW)["kept"][0] == "expired"


def test_who_is_waited_for_are_those_who_said_nothing() -> None:
    said = words(word(ANNA, "approve", NEW), word(EVE, "reject", NEW, reason="too large"))
    assert rows(said)["new"] == ("waiting", ("anna",), ("eve",), ("bob",), "too large")


def test_rejected_is_what_can_have_enough_no_more() -> None:
    said = words(word(BOB, "reject", NEW), word(EVE, "reject", NEW))
    assert rows(said)["new"] == ("rejected", (), ("bob", "eve"), (), "")


def test_an_approved_model_shows_who_wants_it_withdrawn() -> None:
    assert rows(words(word(EVE, "withdraw", KEPT)))["kept"][2] == ("eve",)


@pytest.mark.parametrize("published", [[], [Publication(listing=OLD, published_at=1)]])
def test_a_withdrawn_model_shows_who_would_have_it_back(published: list[Publication]) -> None:
    assert rows(words(word(BOB, "approve", OLD)), published)["old"][:2] == ("withdrawn", ("bob",))


def test_what_is_to_change_about_the_curators_is_told_with_who_wants_it() -> None:
    said = words(
        word(ANNA, "add_curator", curator=b"\x05" * 32),
        word(BOB, "set_threshold", threshold=3),
        word(ANNA, "set_threshold", threshold=1),
    )
    sentences = waiting_changes(known(), said)
    assert len(sentences) == 3
    assert sentences[0].startswith("anna (1 of 2): add")
    assert set(sentences[1:]) == {"bob (1 of 2): 3 must agree", "anna (1 of 2): 1 must agree"}


def test_the_log_names_curators_and_the_keys_of_former_ones() -> None:
    former = Curator(name="gone", key=GONE, since=1)
    told = decision_rows(known(), [word(ANNA, "approve", NEW), word(former, "set_threshold", threshold=2)])
    assert [(row.curator, row.about) for row in told] == [("anna", "new"), ("090909090909", "2")]
