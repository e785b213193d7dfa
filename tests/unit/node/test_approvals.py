"""A node's part in approvals, over hubs in memory: it publishes, decides, signs by itself, believes what fits."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from approval_house import Catalogues, envelope
from catalog_house import take, write_model
from catalog_hubs import Hubs
from curators_house import MINE, Place
from felloe.catalog.approval.trusted import TrustedCatalog
from felloe.catalog.manifests import content_id
from felloe.domain.approval import ENVELOPE, EnvelopeAnswer
from felloe.domain.errors import FelloeError
from felloe.hubs.topics import CATALOG_NEWS
from felloe.node.approvals import NodeApprovals
from waiting import until

Make = Callable[..., Any]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes nodes that are stopped at the end."""
    made: list[Place] = []

    async def place(hubs: Hubs, curator: str = "", *, model: bool = True, works: bool = True, **options: Any) -> Place:
        made.append(Place(tmp_path / str(len(made)), hubs, curator, **options))
        return await made[-1].start(model=model, works=works)

    yield place
    for one in made:
        await one.stop()


async def test_what_the_lone_curator_pulls_is_approved_for_all(make: Make) -> None:
    hubs = Hubs(Catalogues("anna"))
    anna, other = await make(hubs, "anna"), await make(hubs)
    assert not other.may_load()
    assert await anna.curating.arrived(MINE) == "approved by anna"
    assert anna.may_load()
    await until(other.may_load)
    assert await other.curating.arrived(MINE) == "approved by anna"


async def test_what_another_node_pulls_waits_for_the_curator(make: Make) -> None:
    hubs = Hubs(Catalogues("anna"))
    anna, other = await make(hubs, "anna", model=False), await make(hubs)
    assert "felloe approve mine" in await other.curating.arrived(MINE)
    assert not other.may_load()
    with pytest.raises(FelloeError) as refused:
        await other.curating.approve(other.listing, "")
    assert refused.value.code == "not_curator"
    await anna.curating.approve(anna.listing, "looked at")
    await until(other.may_load)


async def test_a_curator_may_want_to_say_so_each_time(make: Make) -> None:
    hubs = Hubs(Catalogues("anna"))
    anna = await make(hubs, "anna", approve_pulls=False)
    assert "felloe approve mine" in await anna.curating.arrived(MINE)
    assert not anna.may_load()


async def test_with_two_to_agree_nothing_is_approved_by_itself_and_nodes_sign_when_they_are_back(make: Make) -> None:
    hubs = Hubs(Catalogues("anna", "bob", "eve", threshold=2))
    anna, eve = await make(hubs, "anna"), await make(hubs, "eve", model=False)
    assert "felloe approve mine" in await anna.curating.arrived(MINE)
    bob = await make(hubs, "bob", works=False)
    await anna.curating.approve(anna.listing, "")
    assert not anna.may_load()
    await eve.stop()
    await anna.stop()
    await bob.curating.approve(bob.listing, "")
    assert not bob.may_load(), "anna's node is not there to sign"
    book = await bob.curating.reader.look()
    assert hubs.house.people["anna"].public_key in await bob.curating.reader.unsigned(book)
    await anna.start(model=False)
    await until(bob.may_load)


async def test_a_pull_without_a_hub_is_published_and_approved_later(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("felloe.node.curating._RETRY_SECONDS", 0.01)
    hubs = Hubs(Catalogues("anna"))
    anna = await make(hubs, "anna", model=False)
    await until(lambda: anna.approvals.known)
    anna.line.up = False
    write_model(anna.folder / "mine.gguf")
    await take(anna.store, anna.folder / "mine.gguf", MINE)
    assert "tries again" in await anna.curating.arrived(MINE)
    anna.line.up = True
    await until(anna.may_load)


async def test_what_lies_in_the_store_is_published_and_not_approved_without_a_word(make: Make) -> None:
    hubs = Hubs(Catalogues("anna"))
    anna = await make(hubs, "anna")
    await until(lambda: hubs.look().publications)
    await asyncio.sleep(0.05)
    assert not anna.may_load()


async def test_a_withdrawn_model_is_not_approved_by_pulling_it_again(make: Make) -> None:
    hubs = Hubs(Catalogues("anna"))
    anna = await make(hubs, "anna")
    await anna.curating.arrived(MINE)
    listing = anna.listing
    await anna.curating.decide("withdraw", content=listing.content, name=listing.name, reason="it leaks")
    assert not anna.may_load()
    assert await anna.curating.arrived(MINE) == "withdrawn by the curators: it leaks"
    assert not anna.may_load()
    await anna.curating.approve(listing, "it was a mistake")
    assert anna.may_load()


async def test_a_rejected_model_is_not_approved_by_pulling_it_again(make: Make) -> None:
    hubs = Hubs(Catalogues("anna"))
    anna = await make(hubs, "anna", approve_pulls=True, model=False)
    other = await make(hubs)
    await other.curating.arrived(MINE)
    await anna.curating.decide("reject", content=other.listing.content, name=MINE)
    write_model(anna.folder / "mine.gguf")
    await take(anna.store, anna.folder / "mine.gguf", MINE)
    assert "felloe approve mine" in await anna.curating.arrived(MINE)


async def test_a_curator_approves_the_manifest_itself_and_not_what_a_hub_says_of_it(make: Make) -> None:
    hubs = Hubs(Catalogues("anna"))
    anna = await make(hubs, "anna", approve_pulls=False)
    await anna.curating.arrived(MINE)
    anna.line.lie = lambda service, answer: EnvelopeAnswer(envelope("mine")) if service == ENVELOPE else answer
    with pytest.raises(FelloeError) as refused:
        await anna.curating.approve(anna.listing, "")
    assert refused.value.code == "bad_manifest"
    assert hubs.look().decisions == ()


async def test_what_is_no_catalogue_changes_nothing_and_is_said(make: Make) -> None:
    hubs, others = Hubs(Catalogues("anna")), Catalogues("mallory")
    anna = await make(hubs, "anna")
    await anna.curating.arrived(MINE)
    for told in (b"", b"\xff" * 100, others.bundle.encode()):
        anna.approvals.problem = ""
        anna.approvals._hear(told)
        await until(lambda: anna.approvals.problem)
        assert anna.may_load()


async def test_a_node_that_knows_no_catalogue_loads_nothing(make: Make, tmp_path: Path) -> None:
    hubs = Hubs(Catalogues("anna"))
    anna = await make(hubs, "anna")
    blank = NodeApprovals(TrustedCatalog(tmp_path / "blank", b""))
    with pytest.raises(FelloeError) as refused:
        blank.check(anna.store.manifest_of(MINE))
    assert refused.value.code == "not_approved"


async def test_lists_ask_the_hubs_only_after_news(make: Make) -> None:
    hubs = Hubs(Catalogues("anna"))
    anna, other = await make(hubs, "anna"), await make(hubs, model=False)
    await until(lambda: other.approvals.known)
    await other.curating.reader.recent()
    before = other.line.looks
    for _ in range(5):
        await other.curating.reader.recent()
    assert other.line.looks == before
    await anna.curating.publish(MINE)
    book, _ = await other.curating.reader.recent()
    assert [one.listing.name for one in book.publications] == [MINE]
    other.line.up = False
    other.line._topics[CATALOG_NEWS](b"2")
    book, _ = await other.curating.reader.recent()
    assert book.publications, "without a hub it is what was heard last"


async def test_a_curators_key_is_made_once_and_only_its_owner_reads_it(make: Make) -> None:
    place = await make(Hubs(Catalogues("anna")), model=False)
    line = place.curating.make_key("bob")
    assert line.startswith("curator:bob:")
    assert place.curating.make_key("bob") == line
    assert (place.folder / "curator.pem").stat().st_mode & 0o777 == 0o600


async def test_a_decision_is_waited_for_a_moment(make: Make) -> None:
    hubs = Hubs(Catalogues("anna"))
    anna, other = await make(hubs, "anna"), await make(hubs)
    content = content_id(other.store.manifest_of(MINE))
    assert not await other.approvals.decided(content, 0.01)
    waiting = asyncio.create_task(other.approvals.decided(content, 10.0))
    await anna.curating.arrived(MINE)
    assert await waiting
