"""What a hub does beyond being a node: it carries messages, lets nodes join, keeps the state together with others."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, NoReturn

import msgspec

from felloe import __version__
from felloe.catalog.approval.maker import Maker
from felloe.domain.approval import Bundle
from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Endpoints
from felloe.domain.serving import DEMAND, DemandAnswer, DemandQuestion
from felloe.host.clock import steady_seconds
from felloe.host.files import write_atomic
from felloe.host.processes import end, spawn
from felloe.hubs.addresses import (
    all_mesh_urls,
    all_peer_addresses,
    mesh_urls,
    message_routes,
    state_routes,
)
from felloe.hubs.catalog_book import CatalogBook, Issuer
from felloe.hubs.changes import HubChanges
from felloe.hubs.invitations import InvitationBook
from felloe.hubs.lease import Leadership
from felloe.hubs.members import MemberBook
from felloe.hubs.network_state import NetworkState
from felloe.hubs.probe import TrialAnswer, TrialRequest, try_node
from felloe.hubs.records import HUBS, MEMBER, HubSet, decode
from felloe.hubs.records import Hub as HubRecord
from felloe.hubs.saved_state import SAVED_NAME, SavedState
from felloe.hubs.serving_book import ServingBook
from felloe.hubs.state_server import StatePlace
from felloe.hubs.topics import Topics
from felloe.hubs.upkeep import HubUpkeep
from felloe.mesh.authority import NetworkAuthority
from felloe.mesh.certificates import hub_tls_name
from felloe.mesh.connection import Connection
from felloe.mesh.hub_events import HubEvents
from felloe.mesh.join_service import HubAddresses, JoinService, ThisHub
from felloe.mesh.roster_service import RosterService
from felloe.mesh.server_config import Routes, TlsFiles
from felloe.mesh.services import HubServices, NodeClient, NodeCommands
from felloe.mesh.trust import Trust
from felloe.node.config import PeerConfig
from felloe.node.founding import own_host
from felloe.node.home import Home
from felloe.node.http_server import NodeServer, listen_on_port
from felloe.node.identity import Identity
from felloe.node.message_server import MessageServer
from felloe.node.planning import DemandDesk, Planning, PlanningPorts
from felloe.node.solver import solve
from felloe.node.stopping import safely

logger = logging.getLogger(__name__)

TRIAL = "trial"
"""The command that has a node open its ports for a moment."""


class HubPlace(NamedTuple):
    """Where a hub lives: its home and how others reach it. `instance` names this process."""

    home: Home
    config: PeerConfig
    endpoints: Endpoints
    instance: str


class Hub:
    """The hub's servers and services: `start_servers` before the node connects, `start_services` after.

    `saved` is what this hub knows of the state when it starts, `trusted` gives the catalogue that this node believes,
    `planning` what the plan needs to know of models.
    """

    def __init__(
        self,
        place: HubPlace,
        identity: Identity,
        saved: SavedState,
        trusted: Callable[[], Bundle | None],
        planning: PlanningPorts,
    ) -> None:
        self.place = place
        self._planning_ports = planning
        self.identity = identity
        files = identity.files
        self._tls = TlsFiles(
            certificate=files.certificate_path, key=files.key_path, authorities=place.home.keys / "issuers.crt"
        )
        self.state = NetworkState(self._state_place(), saved, save=files.saver(SAVED_NAME), routes=self._state_routes)
        self.members = MemberBook(self.state)
        self.invitations = InvitationBook(self.state)
        self.catalog = CatalogBook(
            self.state, self.members, Maker(), issuer=self._issuer, trusted=trusted, now=time.time
        )
        self.serving = ServingBook(self.state)
        self._messages = MessageServer(
            place.home,
            identity.membership.node,
            place.config.host,
            place.config.mesh_port,
            self._tls,
            authority=lambda: self.authority,
            routes=self._message_routes,
            revoked=lambda: self.members.revocations(time.time()),
        )
        self._peer_api: NodeServer | None = None
        self._system: Connection | None = None
        self._services: HubServices | None = None
        self._events: HubEvents | None = None
        self._topics: Topics | None = None
        self.leadership: Leadership | None = None
        self.changes: HubChanges | None = None
        self.survives: Callable[[], str] = str
        self._commands: NodeCommands | None = None
        self._leading: list[asyncio.Task[NoReturn]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._operator = self.authority.operator_token
        self._known_hubs = self.hubs
        self.state.on_change(MEMBER, lambda _: self._messages.members_changed())
        self.state.on_change(HUBS, lambda _: self._hubs_changed())

    @property
    def authority(self) -> NetworkAuthority:
        """The network's signing keys. Raises `forbidden` when this node has just ceased to be a hub."""
        if self.identity.authority is None:
            raise FelloeError("forbidden", "this node is no hub any more")
        return self.identity.authority

    @property
    def trust(self) -> Trust:
        """What every node is told to trust."""
        return self.identity.trust

    @property
    def hubs(self) -> HubSet:
        """All hubs, as far as this one knows."""
        value = self.state.get(HUBS)
        return HubSet(hubs=()) if value is None else decode(value, HubSet)

    @property
    def own_urls(self) -> tuple[str, ...]:
        """Where this hub itself dials its message server."""
        endpoints = self.place.endpoints
        return mesh_urls(msgspec.structs.replace(endpoints, hosts=(own_host(self.place.config),)))

    async def start_servers(self) -> None:
        """Keep the state, carry messages, listen for nodes that join. Raises `port_taken`."""
        config = self.place.config
        self._write_issuers()
        # First the state: it tells who was removed, and they must not get in for a moment.
        await self.state.start()
        await self._messages.start()
        listener = listen_on_port(config.host, config.port, "peer.port, where nodes join")
        membership = self.identity.membership
        service = JoinService(
            ThisHub(node=membership.node, instance=self.place.instance, version=__version__),
            self,
            self.invitations,
            self.members,
            hubs=self._addresses,
        )
        self._peer_api = NodeServer(service.app(), listener, (self._tls.certificate, self._tls.key))
        await self._peer_api.start()

    async def start_services(self, connection: Connection, roster: RosterService) -> None:
        """Answer the other nodes' questions, tell them who dies and what changes."""
        identity = self.identity
        self._services = HubServices(connection)
        await roster.serve(self._services)
        self._topics = Topics(self.state, connection)
        await self._topics.start(self._services)
        await self.catalog.serve(self._services)
        self._system = Connection(
            self.own_urls,
            identity.membership.node,
            login=identity.system_login,
            tls=identity.tls,
            server_name=hub_tls_name(identity.membership.network),
        )
        await self._system.start(wait_seconds=10.0)
        self._messages.watch(self._system)
        self._events = HubEvents(self._system, connection, identity.membership.account)
        await self._events.start()
        self._lead(connection, roster)
        await self._plan(connection, roster)

    def _lead(self, connection: Connection, roster: RosterService) -> None:
        """Take part in having one leader, and in what it does."""
        this, commands = self.identity.membership.node, NodeClient(connection)

        async def ask(node: NodeId, request: TrialRequest) -> TrialAnswer:
            return await commands.tell(node, TRIAL, request, TrialAnswer)

        def ready(node: NodeId) -> bool:
            member = roster.snapshot().members.get(node)
            return member is not None and "hub" in member.record.roles

        upkeep = HubUpkeep(
            self.state,
            self.members,
            this=this,
            version=__version__,
            roster=roster.snapshot,
            mover=self.state.move,
            ready=ready,
            trial=lambda node, endpoints: try_node(node, endpoints, ask),
            clock=steady_seconds,
            now=time.time,
        )
        self.leadership = Leadership(self.state, this, clock=steady_seconds, wants=upkeep.fit_to_lead)
        self.changes = HubChanges(upkeep, leader=self.leadership.leader, clock=steady_seconds)
        self.survives = upkeep.survives
        self._leading = [
            asyncio.create_task(self.leadership.run(), name="leadership"),
            asyncio.create_task(upkeep.run(self.leadership), name="hub-upkeep"),
            asyncio.create_task(self.catalog.run(self._leads), name="hub-catalog"),
        ]

    async def _plan(self, connection: Connection, roster: RosterService) -> None:
        """Plan the network's models while this hub leads, and pass on who asks for one."""
        if self.leadership is None or self._services is None:
            raise FelloeError("internal", "a hub plans only with its services up")
        leadership, hubs = self.leadership, NodeClient(connection)
        planning = Planning(
            self.serving,
            self._planning_ports,
            roster=roster.snapshot,
            term=leadership.term,
            clock=steady_seconds,
            now=time.time,
            solve=solve,
        )

        async def tell(leader: NodeId, question: DemandQuestion) -> DemandAnswer:
            return await hubs.tell(leader, DEMAND, question, DemandAnswer)

        desk = DemandDesk(planning, self.identity.membership.node, leader=leadership.leader, tell=tell)
        self._commands = NodeCommands(connection)
        await self._commands.serve(DEMAND, DemandQuestion, desk.answer)
        await self._services.serve(DEMAND, DemandQuestion, desk.pass_on)
        self._leading.append(asyncio.create_task(planning.run(), name="hub-planning"))

    async def stop(self) -> None:
        """Let another hub lead, then end the services in the reverse order."""
        for task in self._leading:
            task.cancel()
        await asyncio.gather(*self._leading, return_exceptions=True)
        if self.leadership is not None:
            await safely(self.leadership.resign)
        for part in (self._events, self._topics, self._commands, self._services, self._system):
            if part is not None:
                await safely(part.close)
        if self._peer_api is not None:
            await safely(self._peer_api.stop)

    async def stop_servers(self) -> None:
        """End the servers, last of all."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await safely(self._messages.stop)
        await safely(self.state.close)

    def renewed(self) -> None:
        """This node's certificate is a new one: the servers show it from now on."""
        if self._peer_api is not None:
            self._peer_api.renew_certificate()
        self._do(self._reload)

    def trust_changed(self) -> None:
        """Other issuers are trusted, or this hub signs with other keys: the servers take that up."""
        self._write_issuers()
        self.catalog.wake()
        self._do(self._reload)

    def _leads(self) -> bool:
        return self.leadership is not None and self.leadership.term() is not None

    def _issuer(self) -> Issuer:
        trust = self.trust
        return Issuer(trust.issuer_key, trust.list.issued_at, self.authority)

    def _addresses(self) -> HubAddresses:
        hubs = self.hubs.hubs
        return HubAddresses(nats_urls=all_mesh_urls(hubs), peers=all_peer_addresses(hubs))

    def _state_place(self) -> StatePlace:
        place = self.place
        return StatePlace(
            node=self.identity.membership.node,
            directory=place.home.state,
            logs=place.home.logs,
            tls=self._tls,
            spawn=spawn,
            end=end,
        )

    def _record(self) -> HubRecord:
        membership = self.identity.membership
        return HubRecord(
            id=membership.node,
            name=membership.name,
            public_key=self.identity.public_key,
            endpoints=self.place.endpoints,
            since=0,
        )

    def _message_routes(self) -> Routes:
        return message_routes(self.hubs.hubs, self._record(), self.place.config.host)

    def _state_routes(self, generation: int, keepers: tuple[NodeId, ...]) -> Routes | None:
        return state_routes(self.hubs, keepers, generation, self._record(), self.place.config.host)

    def _write_issuers(self) -> None:
        write_atomic(self._tls.authorities, self.identity.trust.issuers(time.time()).encode())

    def _hubs_changed(self) -> None:
        before, self._known_hubs = self._known_hubs, self.hubs
        if before.hubs == self._known_hubs.hubs:
            return
        left = {hub.id for hub in before.hubs} - {hub.id for hub in self._known_hubs.hubs}
        # A server keeps a route to a hub that is gone from its configuration; only a restart ends it for sure.
        removed = any(self.members.is_revoked(node) for node in left)
        self._do(self._messages.restart if removed else self._reload)

    async def _reload(self) -> None:
        if self.authority.operator_token != self._operator:
            self._operator = self.authority.operator_token
            await self._messages.restart()
        else:
            await self._messages.reload()
        await self.state.generations.reload()

    def _do(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Carry out a change on the servers soon; its failure is logged, and the servers' keepers mend it."""
        task = asyncio.create_task(_logged(work), name="hub-servers")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _logged(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        await work()
    except FelloeError as error:
        logger.error("a server of this hub did not take up a change: %s", error)
