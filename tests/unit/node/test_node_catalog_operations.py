"""What the owner's commands about approvals and curators do and refuse, over hubs in memory."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from approval_house import Catalogues, envelope
from catalog_hubs import Hubs
from curators_house import MINE, Place
from felloe.catalog.approval.curator_key import curator_text
from felloe.console.catalog_messages import CuratorRequest, DecideRequest
from felloe.console.messages import NameRequest
from felloe.domain.errors import FelloeError
from felloe.node.catalog_operations import CatalogOperations
from routing_fakes import make_roster

BOB = curator_text("bob", b"\x42" * 32)


class Owner:
    """Somebody at a node's command line."""

    def __init__(self, place: Place) -> None:
        self.place = place
        node: Any = SimpleNamespace(
            curating=place.curating,
            approvals=place.approvals,
            store=place.store,
            membership=SimpleNamespace(name="attic"),
            roster=SimpleNamespace(snapshot=make_roster),
        )
        self.does = CatalogOperations(node)

    async def refused(self, work: Any) -> str:
        with pytest.raises(FelloeError) as raised:
            await work
        return f"{raised.value.code}: {raised.value.detail}"

    async def standings(self) -> dict[str, str]:
        return {row.name: row.standing for row in (await self.does.view()).rows}


Make = Callable[..., Any]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes owners of nodes that are stopped at the end."""
    made: list[Place] = []

    async def owner(hubs: Hubs, curator: str = "", **started: Any) -> Owner:
        made.append(Place(tmp_path / str(len(made)), hubs, curator))
        return Owner(await made[-1].start(**started))

    yield owner
    for one in made:
        await one.stop()


async def test_a_model_is_published_approved_and_withdrawn_by_name(make: Make) -> None:
    hubs = Hubs(Catalogues("anna"))
    anna, other = await make(hubs, "anna", model=False), await make(hubs)
    row = await other.does.publish(NameRequest(MINE))
    assert (row.name, row.standing, row.waits_for) == (MINE, "waiting", ("anna",))
    approved = await anna.does.decide(DecideRequest("approve", row.content[:12]))
    assert approved.done and "is approved" in approved.sentence
    assert await anna.standings() == {MINE: "approved"}
    assert "already, by anna" in (await anna.does.decide(DecideRequest("approve", MINE))).sentence
    shown = await anna.does.show(NameRequest(MINE))
    assert shown.files and shown.row.content == row.content
    withdrawn = await anna.does.decide(DecideRequest("withdraw", MINE, "it leaks"))
    assert withdrawn.done
    assert await anna.standings() == {MINE: "withdrawn"}
    assert [one.verdict for one in await anna.does.log()] == ["approve", "withdraw"]


async def test_a_curator_approves_a_model_of_the_own_store_without_publishing_it_first(make: Make) -> None:
    anna = await make(Hubs(Catalogues("anna")), "anna", works=False)
    assert (await anna.does.decide(DecideRequest("approve", MINE))).done


async def test_what_nobody_published_cannot_be_decided(make: Make) -> None:
    anna = await make(Hubs(Catalogues("anna")), "anna", model=False)
    for verdict in ("approve", "reject"):
        assert "felloe publish" in await anna.refused(anna.does.decide(DecideRequest(verdict, "ghost")))
    assert "nothing to withdraw" in await anna.refused(anna.does.decide(DecideRequest("withdraw", "ghost")))
    assert "not_found" in await anna.refused(anna.does.show(NameRequest("ghost")))


async def test_two_contents_of_one_name_have_to_be_told_apart(make: Make) -> None:
    hubs = Hubs(Catalogues("anna"))
    anna = await make(hubs, "anna", model=False)
    first = await hubs.book.publish(envelope("twin", digest="ab"))
    await hubs.book.publish(envelope("twin", digest="cd"))
    said = await anna.refused(anna.does.decide(DecideRequest("approve", "twin")))
    assert first.listing.content[:12] in said
    assert (await anna.does.decide(DecideRequest("approve", first.listing.content))).done
    said = await anna.refused(anna.does.decide(DecideRequest("approve", "cd" * 32)))
    assert "not_found" in said
    other = next(one for one in hubs.look().publications if one.listing.content != first.listing.content)
    said = await anna.refused(anna.does.decide(DecideRequest("approve", other.listing.content)))
    assert "withdraw that one first" in said


async def test_who_is_waited_for_is_told_with_each_decision(make: Make) -> None:
    hubs = Hubs(Catalogues("anna", "bob", "eve", threshold=2))
    anna, bob = await make(hubs, "anna"), await make(hubs, "bob", model=False)
    await anna.does.publish(NameRequest(MINE))
    noted = await anna.does.decide(DecideRequest("approve", MINE))
    assert not noted.done and "1 of 2; waits for bob, eve" in noted.sentence
    assert (await bob.does.decide(DecideRequest("approve", MINE))).done
    noted = await anna.does.change_curators(CuratorRequest("set_threshold", threshold=1))
    assert not noted.done
    assert (await bob.does.curators()).waiting == ("anna (1 of 2): 1 must agree",)


async def test_curators_come_and_go(make: Make) -> None:
    anna = await make(Hubs(Catalogues("anna")), "anna", model=False)
    does = anna.does
    assert "bob is a curator now" in (await does.change_curators(CuratorRequest("add_curator", BOB))).sentence
    assert "already" in (await does.change_curators(CuratorRequest("add_curator", BOB))).sentence
    view = await does.curators()
    assert [(one.name, one.this) for one in view.curators] == [("anna", True), ("bob", False)]
    twin = CuratorRequest("add_curator", curator_text("bob", b"\x43" * 32))
    assert "--name" in await anna.refused(does.change_curators(twin))
    assert "1 to 2" in await anna.refused(does.change_curators(CuratorRequest("set_threshold", threshold=3)))
    assert "there are" in await anna.refused(does.change_curators(CuratorRequest("remove_curator", "mallory")))
    assert "invalid_value" in await anna.refused(does.change_curators(CuratorRequest("add_curator", "bob")))
    gone = await does.change_curators(CuratorRequest("remove_curator", "42" * 4))
    assert gone.done
    assert "lower the threshold" in await anna.refused(does.change_curators(CuratorRequest("remove_curator", "anna")))


async def test_a_node_without_a_curators_key_decides_nothing(make: Make) -> None:
    hubs = Hubs(Catalogues("anna"))
    other = await make(hubs)
    await other.does.publish(NameRequest(MINE))
    for work in (
        other.does.decide(DecideRequest("approve", MINE)),
        other.does.decide(DecideRequest("reject", MINE)),
        other.does.change_curators(CuratorRequest("add_curator", BOB)),
    ):
        assert (await other.refused(work)).startswith("not_curator: ")


async def test_without_a_hub_what_is_approved_is_shown_and_what_waits_is_said_to_be_missing(make: Make) -> None:
    anna = await make(Hubs(Catalogues("anna")), "anna")
    await anna.place.curating.arrived(MINE)
    anna.place.line.up = False
    view = await anna.does.view()
    assert [row.standing for row in view.rows] == ["approved"]
    assert "not shown" in view.notes[0]
    assert "network_unreachable" in await anna.refused(anna.does.log())


async def test_a_curators_name_has_to_be_one(make: Make) -> None:
    anna = await make(Hubs(Catalogues("anna")), model=False)
    assert (await anna.does.curator_key(NameRequest(""))).text.startswith("curator:attic:")
    assert "invalid_value" in await anna.refused(anna.does.curator_key(NameRequest("a:b")))
