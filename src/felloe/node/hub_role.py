"""Whether this node is a hub, as the hubs have decided: it becomes one, and ceases to be one, while it runs."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

import msgspec

from felloe.domain.approval import Bundle
from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.hubs.addresses import all_mesh_urls, all_peer_addresses
from felloe.hubs.records import GENERATION, HUBS, NEXT, Generation, HubSet, Next, decode, encode
from felloe.hubs.saved_state import SAVED_NAME, SavedState, read_saved, write_saved
from felloe.hubs.store import Entry
from felloe.hubs.topics import REVOKED, TRUST
from felloe.mesh.connection import Connection
from felloe.mesh.exchange import Exchange
from felloe.mesh.join_client import ask_instance
from felloe.mesh.join_token import parse_address
from felloe.mesh.roster_service import RosterService
from felloe.mesh.state import StateFollower
from felloe.mesh.trust import read
from felloe.node.hub import Hub, HubPlace
from felloe.node.identity import Identity
from felloe.node.planning import PlanningPorts
from felloe.node.root_operations import Overtaken, publish_trust

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0
_DOUBT_SECONDS = 6.0
_TWIN_SECONDS = 3.0
_LINE_SECONDS = 10.0


class HubRole:
    """Owns the `Hub` of this node, when it is one. `changed` is told that it has become one or ceased to be one.

    `trusted` gives the catalogue of models that this node believes, `planning` what a plan needs to know of models.
    """

    def __init__(
        self,
        place: HubPlace,
        identity: Identity,
        connection: Connection,
        roster: RosterService,
        exchange: Exchange,
        follower: StateFollower,
        *,
        changed: Callable[[], None],
        trusted: Callable[[], Bundle | None],
        planning: PlanningPorts,
    ) -> None:
        self._place = place
        self._identity = identity
        self._connection = connection
        self._roster = roster
        self._exchange = exchange
        self._tell_changed = changed
        self._trusted = trusted
        self._planning = planning
        self._follower = follower
        self._wake = asyncio.Event()
        self._doubted_at = time.monotonic()
        identity.keeper.on_change(lambda _: self._pass_on(Hub.renewed))
        identity.on_trust(lambda: self._pass_on(Hub.trust_changed))
        self.hub: Hub | None = self._open() if identity.membership.role == "hub" else None

    def _open(self) -> Hub:
        path = self._place.home.state / SAVED_NAME
        saved = read_saved(self._identity.files.read_state(SAVED_NAME), path)
        if saved is None:
            raise FelloeError("bad_state", f"this node is a hub, but {path} is missing")
        return Hub(self._place, self._identity, saved, self._trusted, self._planning)

    @property
    def hubs_to_choose(self) -> HubSet | None:
        """The hubs among which this node can choose: on a node that is none itself, once it has heard of them."""
        told = self._follower.value(HUBS) if self.hub is None else None
        return None if told is None else decode(told, HubSet)

    async def start_servers(self) -> None:
        """On a hub: start its servers, after a look whether this identity runs already. Raises `already_running`."""
        if self.hub is not None:
            await self._look_for_twin()
            await self.hub.start_servers()
            self._connection.set_urls(self.hub.own_urls, nearest=self.hub.own_urls[0])

    async def start_services(self) -> None:
        """On a hub: start its services. Then follow what the hubs tell."""
        if self.hub is not None:
            await self.hub.start_services(self._connection, self._roster)
        for topic in (HUBS, NEXT, GENERATION):
            await self._follower.follow(topic, lambda value, topic=topic: self._hear(topic, value))
        await self._follower.follow(TRUST, self._identity.take_trust)
        await self._follower.follow(REVOKED, self._ban)

    async def run(self) -> None:
        """Be what the hubs have decided, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._settle()
            except FelloeError as error:
                logger.warning("this node's role could not be settled: %s", error)
            except Exception:
                logger.exception("settling this node's role failed")

    async def stop(self) -> None:
        """End the services of a hub."""
        if self.hub is not None:
            await self.hub.stop()

    async def stop_servers(self) -> None:
        """End the servers of a hub, last of all."""
        if self.hub is not None:
            await self.hub.stop_servers()

    def _pass_on(self, news: Callable[[Hub], None]) -> None:
        if self.hub is not None:
            news(self.hub)

    def _hear(self, topic: str, value: bytes) -> None:
        if topic == HUBS:
            self._take_hubs(value)
        elif self.hub is not None:
            self.hub.state.generations.learn(self._generation(), self._next())
        self._wake.set()

    def _take_hubs(self, value: bytes) -> None:
        """Dial these from now on; a hub dials its own server first."""
        hubs = decode(value, HubSet)
        urls, nearest = all_mesh_urls(hubs.hubs), None
        if self.hub is not None:
            nearest = self.hub.own_urls[0]
            urls = (*self.hub.own_urls, *urls)
            self.hub.state.learn(HUBS, value)
        if urls:
            self._connection.set_urls(urls, nearest=nearest)
            self._identity.knows_hubs(all_peer_addresses(hubs.hubs), urls)

    def _ban(self, value: bytes) -> None:
        try:
            revoked = frozenset(msgspec.json.decode(value, type=list[NodeId]))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            logger.error("the list of removed nodes cannot be read")
            return
        self._roster.ban(revoked)
        self._exchange.ban(revoked)

    def _generation(self) -> Generation | None:
        value = self._follower.value(GENERATION)
        return None if value is None else decode(value, Generation)

    def _next(self) -> Next | None:
        value = self._follower.value(NEXT)
        return None if value is None else decode(value, Next)

    async def _settle(self) -> None:
        if self.hub is None:
            hubs = self.hubs_to_choose
            if hubs is not None and self._is_listed(hubs):
                await self._become(encode(hubs))
        elif self._lost_role() or not self._is_listed(self.hub.hubs) or await self._was_demoted(self.hub):
            await self._cease(self.hub)
        else:
            await self._keep_keys(self.hub)

    async def _keep_keys(self, hub: Hub) -> None:
        """Fetch signing keys that another hub has replaced; tell of those that this one replaced before a crash."""
        trust = self._identity.trust
        if trust.version > hub.authority.version:
            await self._identity.ask_others()
        elif hub.state.generations.keeps and self._is_behind(hub.state.get(TRUST)):
            with contextlib.suppress(Overtaken):
                await publish_trust(hub.state, trust)

    def _is_behind(self, told: bytes | None) -> bool:
        return told is not None and read(told).version < self._identity.trust.version

    def _is_listed(self, hubs: HubSet) -> bool:
        return hubs.find(self._identity.membership.node) is not None

    def _lost_role(self) -> bool:
        """A renewal has told that this node is a hub no more."""
        return self._identity.membership.role != "hub"

    async def _was_demoted(self, hub: Hub) -> bool:
        """A hub that has lost the others may have been demoted meanwhile; another hub tells over HTTPS."""
        if self._hears_another(hub) and await hub.state.generations.is_well():
            self._doubted_at = time.monotonic()
        if time.monotonic() - self._doubted_at < _DOUBT_SECONDS:
            return False
        self._doubted_at = time.monotonic()
        try:
            await self._identity.ask_others()
        except FelloeError as error:
            return error.code == "forbidden"
        return self._lost_role()

    def _hears_another(self, hub: Hub) -> bool:
        """Whether another hub is alive, or there is none."""
        members = self._roster.snapshot().members
        others = [members.get(other.id) for other in hub.hubs.hubs if other.id != self._identity.membership.node]
        return not others or any(other is not None and other.alive for other in others)

    async def _become(self, hubs: bytes) -> None:
        saved = SavedState(
            generation=self._generation() or Generation(number=0, hubs=()), entries={HUBS: Entry(hubs, 0)}
        )
        # First what a hub starts from: a node that is killed here starts as what its membership says.
        write_saved(self._identity.files.saver(SAVED_NAME), saved.generation, saved.entries)
        await self._identity.ask_others()
        if self._identity.membership.role != "hub":
            raise FelloeError("network_unreachable", "the hubs have not all heard yet that this node is to be a hub")
        hub, trust = Hub(self._place, self._identity, saved, self._trusted, self._planning), self._identity.trust
        hub.state.generations.learn(None, self._next())
        try:
            await hub.start_servers()
        except BaseException:
            await hub.stop()
            await hub.stop_servers()
            raise
        self.hub = hub
        if self._identity.trust is not trust:
            hub.trust_changed()
        # The line must speak with a hub's rights from now on; what is under way resumes.
        self._take_hubs(hubs)
        await self._connection.begin_anew(_LINE_SECONDS)
        await hub.start_services(self._connection, self._roster)
        logger.info("this node is a hub now")
        self._tell_changed()

    async def _cease(self, hub: Hub) -> None:
        self.hub = None
        await hub.stop()
        self._identity.cease_as_hub()
        if (hubs := self._follower.value(HUBS)) is not None:
            self._take_hubs(hubs)
        with contextlib.suppress(FelloeError):
            await self._identity.ask_others()
        if hubs is None:
            # It was demoted while it was away, and has dialled nobody but itself since it started.
            self._connection.set_urls(self._identity.membership.nats_urls)
        self._connection.redial(elsewhere=True)
        await hub.stop_servers()
        self._identity.files.forget_state()
        logger.info("this node is a hub no more")
        self._tell_changed()

    async def _look_for_twin(self) -> None:
        """A copied home must not run twice: the two would fight for the state and for the name of the node."""
        identity = self._identity

        async def look(peer: str) -> None:
            with contextlib.suppress(FelloeError, ValueError, TimeoutError):
                async with asyncio.timeout(_TWIN_SECONDS):
                    found = await ask_instance(parse_address(peer), identity.trust, now=time.time)
                if found.node == identity.membership.node and found.instance != self._place.instance:
                    twins.append(peer)

        twins: list[str] = []
        await asyncio.gather(*(look(peer) for peer in identity.membership.hubs))
        if twins:
            raise FelloeError(
                "already_running", f"a hub with this node's key runs at {twins[0]}: is this home a copy of another one?"
            )
