"""What a hub does beyond being a node: it runs the message server, lets nodes join, and keeps the network's state."""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from functools import partial

from felloe.domain.errors import FelloeError
from felloe.host.processes import end, spawn
from felloe.mesh.authority import NetworkAuthority
from felloe.mesh.certificates import client_context, hub_tls_name
from felloe.mesh.connection import Connection, Login
from felloe.mesh.credentials import Credential, CredentialKeeper, sign_nonce
from felloe.mesh.hub_events import HubEvents
from felloe.mesh.invitations import Invitations
from felloe.mesh.join_service import HubAddresses, JoinService
from felloe.mesh.membership import MemberList, Membership
from felloe.mesh.nats_server import NatsServer, ServerSettings
from felloe.mesh.roster_service import RosterService
from felloe.mesh.services import HubServices
from felloe.mesh.state import StateKeeper
from felloe.node.config import PeerConfig
from felloe.node.founding import advertised_hosts, mesh_urls, peer_addresses, raw_public_key
from felloe.node.home import Home
from felloe.node.http_server import NodeServer, listen_on_port
from felloe.node.network_files import NetworkFiles
from felloe.node.stopping import safely

logger = logging.getLogger(__name__)


@dataclass
class Hub:
    """The hub's servers and services; `start_servers` before the node connects, `start_services` after."""

    home: Home
    files: NetworkFiles
    config: PeerConfig
    authority: NetworkAuthority
    membership: Membership
    members: MemberList
    invitations: Invitations
    state: StateKeeper | None = None
    _server: NatsServer | None = None
    _peer_api: NodeServer | None = None
    _system: Connection | None = None
    _services: HubServices | None = None
    _events: HubEvents | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list[asyncio.Task[None]])

    @classmethod
    def open(cls, home: Home, files: NetworkFiles, config: PeerConfig, membership: Membership) -> "Hub":
        """Read the hub's own state. Raises `bad_state` when the network's keys are missing."""
        authority = files.authority()
        if authority is None:
            raise FelloeError("bad_state", f"this node is a hub, but the network's keys are not in {home.keys}")
        return cls(
            home=home,
            files=files,
            config=config,
            authority=authority,
            membership=membership,
            members=MemberList(files.saver("members.json"), stored=files.read_state("members.json")),
            invitations=Invitations(files.saver("invitations.json"), stored=files.read_state("invitations.json")),
        )

    async def start_servers(self) -> None:
        """Listen for nodes that join, and carry messages. Raises `port_taken`."""
        listener = listen_on_port(self.config.host, self.config.port, "peer.port, where nodes join")
        service = JoinService(
            self.authority,
            self.invitations,
            self.members,
            hubs=self._addresses,
        )
        self._peer_api = NodeServer(service.app(), listener, (self.files.certificate_path, self.files.key_path))
        self._server = NatsServer(self._settings(), accounts=self._accounts, spawn=spawn, end=end)
        await self._server.start()
        self._tasks.append(asyncio.create_task(self._server.run(), name="nats-server"))
        await self._peer_api.start()

    def _addresses(self) -> HubAddresses:
        return HubAddresses(
            nats_urls=mesh_urls(advertised_hosts(self.config), self.config.mesh_port),
            peers=tuple(map(str, peer_addresses(self.config))),
        )

    def _settings(self) -> ServerSettings:
        return ServerSettings(
            name=self.membership.node,
            host=self.config.host,
            port=self.config.mesh_port,
            directory=self.home.state / "nats",
            log=self.home.logs / "nats-server.log",
            certificate=self.files.certificate_path,
            key=self.files.key_path,
            operator=self.authority.operator_token,
            system_account=self.authority.system_account,
        )

    def _accounts(self) -> dict[str, str]:
        now = time.time()
        return self.authority.account_tokens(now, self.members.revocations(now))

    async def start_services(self, connection: Connection, roster: RosterService, keeper: CredentialKeeper) -> None:
        """Answer the other nodes' questions, tell them who dies, keep the network's state."""
        self._services = HubServices(connection)
        await roster.serve(self._services)
        self.state = StateKeeper(connection)
        await self.state.start(self._services)
        self._system = Connection(
            self.membership.nats_urls,
            self.membership.node,
            login=partial(system_login, keeper, self.files),
            tls=client_context(self.membership.root),
            server_name=hub_tls_name(self.membership.network),
        )
        await self._system.start(wait_seconds=10.0)
        self._events = HubEvents(self._system, connection, self.membership.account)
        await self._events.start()
        keeper.on_change(self._renewed)

    def issue_own(self) -> Credential:
        """A new credential for this hub itself."""
        key = raw_public_key(self.files.node_key())
        return self.authority.issue(key, "hub", time.time(), addresses=advertised_hosts(self.config))

    def _renewed(self, _: Credential) -> None:
        if self._peer_api is not None:
            self._peer_api.renew_certificate()
        if self._server is not None:
            self._tasks.append(asyncio.create_task(self._server.reload(), name="nats-reload"))

    async def stop(self) -> None:
        """End everything in the reverse order."""
        if self._events is not None:
            await safely(self._events.close)
        if self._system is not None:
            await safely(self._system.close)
        if self.state is not None:
            await safely(self.state.close)
        if self._services is not None:
            await safely(self._services.close)
        if self._peer_api is not None:
            await safely(self._peer_api.stop)

    async def stop_server(self) -> None:
        """End the message server, last of all."""
        if self._server is not None:
            await self._server.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def user_login(keeper: CredentialKeeper, files: NetworkFiles) -> Login:
    """How this node logs in to the application account, with the newest credential."""
    return Login(keeper.current.user_token, partial(sign_nonce, files.node_key()))


def system_login(keeper: CredentialKeeper, files: NetworkFiles) -> Login:
    """How a hub logs in to the system account."""
    return Login(keeper.current.system_token, partial(sign_nonce, files.node_key()))
