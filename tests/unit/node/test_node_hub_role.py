"""A node that ceases to be a hub finds the hubs that are left."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Endpoints
from felloe.hubs.records import HUBS, Hub, HubSet, encode
from felloe.node.hub_role import HubRole

OTHERS = ("tls://192.0.2.1:8472",)
OTHER = Hub(
    id=NodeId("o" * 26),
    name="other",
    public_key=bytes(32),
    endpoints=Endpoints(hosts=("192.0.2.9",), peer=8471, mesh=8472, route=8473, state=8474),
    since=0,
)


class World:
    """What surrounds a hub's role; `told` is the hub set that the node has heard of."""

    def __init__(self, told: bytes | None, *, reachable: bool = True) -> None:
        self.done: list[str] = []
        self.urls: tuple[str, ...] = ("tls://127.0.0.1:8472",)
        self.reachable = reachable
        self.membership = SimpleNamespace(role="spoke", nats_urls=self.urls if not reachable else (), node="n" * 26)
        identity = SimpleNamespace(
            membership=self.membership,
            keeper=SimpleNamespace(on_change=lambda _: None),
            on_trust=lambda _: None,
            cease_as_hub=lambda: self.done.append("ceased"),
            ask_others=self.ask_others,
            knows_hubs=lambda *_: None,
            files=SimpleNamespace(forget_state=lambda: self.done.append("forgot")),
        )
        connection = SimpleNamespace(set_urls=self.set_urls, redial=lambda **_: self.done.append("redialled"))
        follower = SimpleNamespace(value=lambda topic: told if topic == HUBS else None)
        nothing = cast(Any, None)
        self.role = HubRole(
            nothing,
            cast(Any, identity),
            cast(Any, connection),
            nothing,
            nothing,
            cast(Any, follower),
            changed=lambda: None,
            trusted=lambda: None,
            planning=nothing,
        )
        self.hub = cast(Any, SimpleNamespace(stop=self.stop, stop_servers=self.stop))

    async def stop(self) -> None:
        self.done.append("stopped")

    async def ask_others(self) -> None:
        if not self.reachable:
            raise FelloeError("network_unreachable", "no hub answers")
        self.membership.nats_urls = OTHERS

    def set_urls(self, urls: tuple[str, ...], *, nearest: str | None = None) -> None:
        assert nearest is None, "it is no hub itself"
        self.urls = urls


async def test_a_hub_that_was_demoted_while_it_was_away_dials_the_hubs_that_another_one_named() -> None:
    world = World(None)
    await world.role._cease(world.hub)
    assert world.urls == OTHERS
    assert world.done == ["stopped", "ceased", "redialled", "stopped", "forgot"]


async def test_a_hub_that_is_demoted_while_it_runs_dials_the_hubs_that_it_has_heard_of() -> None:
    world = World(encode(HubSet(hubs=(OTHER,))))
    await world.role._cease(world.hub)
    assert world.urls == ("tls://192.0.2.9:8472",)


@pytest.mark.parametrize("told", [None, encode(HubSet(hubs=(OTHER,)))])
async def test_it_ceases_although_no_other_hub_answers(told: bytes | None) -> None:
    world = World(told, reachable=False)
    await world.role._cease(world.hub)
    assert world.done[-1] == "forgot"
