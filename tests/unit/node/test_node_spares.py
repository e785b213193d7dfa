"""A node fetches the copies that are its turn: one at a time, calmly, and never at the cost of what is here."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from catalog_house import opened, take, write_model
from felloe.catalog.manifests import content_id, listing
from felloe.catalog.store import ModelStore
from felloe.domain.approval import Approvals, Approved
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ContentId, NodeId
from felloe.domain.plan import DesiredModel
from felloe.domain.roster import HELD_DIGITS, Member, Roster
from felloe.node.spare_rules import CALM_SECONDS
from felloe.node.spares import SparePorts, Spares
from gguf_bytes import tiny_model
from serving_house import FakeServingNode, ServingHouse, node_id, wish
from waiting import until


class House:
    """This node with an empty store, and another one that holds two models. `trouble` is what a fetch fails with."""

    def __init__(self, store: ModelStore, approvals: Approvals, copies: int = 2) -> None:
        self.network = ServingHouse(100, 100)
        self.store = store
        self.approvals: Approvals | None = approvals
        self.held = set(approvals.approved)
        self.wishes: list[DesiredModel] = [wish("one"), wish("two")]
        self.now = 0.0
        self.rests = self.endless = False
        self.ended = 0
        self.trouble: FelloeError | None = None
        self.asked: list[ContentId] = []
        self.spares = Spares(
            node_id(0),
            copies,
            SparePorts(
                store=store,
                fetch=self._fetch,
                approvals=lambda: self.approvals,
                wanted=lambda: self.wishes,
                placements=tuple,
                roster=self.roster,
                rests=lambda: self.rests,
            ),
            clock=lambda: self.now,
        )
        self.came: set[ContentId] = set()
        self.holds = {node_id(0): self.came, node_id(1): self.held}

    async def _fetch(self, content: ContentId, _: object) -> None:
        self.asked.append(content)
        if self.trouble is not None:
            raise self.trouble
        if self.endless:
            try:
                await asyncio.Event().wait()
            finally:
                self.ended += 1
        self.came.add(content)

    def roster(self) -> Roster:
        roster = self.network.roster()
        members: dict[NodeId, Member] = {}
        for node, member in roster.members.items():
            holds = tuple(content[:HELD_DIGITS] for content in self.holds[node])
            members[node] = replace(member, record=replace(member.record, holds=holds))
        return replace(roster, members=members)

    async def live(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            await self.spares.look()
            self.now += 5.0


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    donor = await opened(tmp_path / "donor")
    network = ServingHouse(100)
    approved: dict[ContentId, Approved] = {}
    for name in ("one", "two"):
        path = tmp_path / f"{name}.gguf"
        write_model(path, tiny_model())
        await take(donor, path, name)
        found = listing(await donor.envelope_of(name))
        approved[found.content] = Approved(listing=found, approved_at=0, approved_by=(), since=1)
    yield House(await opened(tmp_path / "own"), replace(network.approvals(), approved=approved))


async def test_each_missing_copy_is_fetched_once_one_after_the_other_after_some_calm(house: House) -> None:
    await house.live(CALM_SECONDS)
    assert house.asked == []
    await house.live(5)
    assert len(house.asked) == 1
    await house.live(100)
    assert sorted(house.asked) == sorted(house.held)


async def test_a_holder_that_is_back_in_time_makes_nobody_fetch(house: House) -> None:
    other = FakeServingNode(2, 100)
    house.network.nodes.append(other)
    house.holds[other.id] = house.held
    other.alive = False
    await house.live(CALM_SECONDS - 5)
    other.alive = True
    await house.live(300)
    assert house.asked == []
    other.alive = False
    await house.live(300)
    assert set(house.asked) == house.held


async def test_a_node_that_drains_or_trusts_no_catalogue_fetches_nothing(house: House) -> None:
    house.rests = True
    await house.live(60)
    house.rests, house.approvals = False, None
    await house.live(60)
    assert house.asked == []


async def test_what_nobody_wants_any_more_is_not_fetched(house: House) -> None:
    house.wishes = []
    await house.live(200)
    assert house.asked == []


async def test_a_fetch_ends_when_nobody_wants_the_model_any_more(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("felloe.node.spares.LOOK_SECONDS", 0.01)
    await house.live(CALM_SECONDS)
    house.endless = True
    look = asyncio.create_task(house.spares.look())
    await until(lambda: bool(house.asked))
    house.wishes = []
    await look
    assert (house.ended, house.came) == (1, set())


async def test_one_copy_is_enough_for_who_says_so(house: House) -> None:
    alone = House(house.store, house.approvals or pytest.fail("there are approvals"), copies=1)
    await alone.live(200)
    assert (alone.asked, alone.spares.files()) == ([], frozenset())


async def test_a_fetch_that_fails_rests_ever_longer_and_keeps_no_other_one(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.trouble = FelloeError("no_holder", "nobody gives it")
    await house.live(1200)
    assert 4 <= len(house.asked) <= 12
    assert set(house.asked) == house.held
    assert "nobody gives it" in caplog.text
    house.trouble = None
    await house.live(3600)
    assert house.came == house.held


async def test_without_room_nothing_is_fetched_and_nothing_deleted(
    tmp_path: Path, house: House, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mine.gguf"
    write_model(path)
    small = await opened(tmp_path / "small", quota=path.stat().st_size + 1000)
    await take(small, path, "mine")
    assert await small.room() < path.stat().st_size
    full = House(small, house.approvals or pytest.fail("there are approvals"))
    with caplog.at_level(logging.INFO):
        await full.live(300)
    assert full.asked == []
    assert "without deleting anything" in caplog.text
    assert [model.name for model in small.list()] == ["mine"]


async def test_clean_up_keeps_off_copies_that_are_needed_while_they_are_wanted(tmp_path: Path, house: House) -> None:
    path = tmp_path / "one.gguf"
    await take(house.store, path, "one")
    assert content_id(house.store.manifest_of("one")) in house.held
    assert house.spares.files() == {"one"}
    house.wishes = []
    assert house.spares.files() == frozenset()
