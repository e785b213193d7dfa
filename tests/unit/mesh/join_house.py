"""A hub's join port on loopback with real TLS, for the tests of joining and renewing."""

import asyncio
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from felloe.domain.ids import NodeId, id_from_public_key
from felloe.domain.roster import Role
from felloe.hubs.invitations import InvitationBook
from felloe.hubs.members import MemberBook
from felloe.mesh.authority import NetworkAuthority
from felloe.mesh.certificates import client_context, server_context
from felloe.mesh.join_client import Welcomed, join
from felloe.mesh.join_service import HubAddresses, JoinService, ThisHub
from felloe.mesh.join_token import Address, JoinToken, write_token
from felloe.mesh.rotation import Keys, found
from felloe.mesh.trust import Trust
from hubs_fakes import FakeState, FakeStore

VERSION = "0.1.0"


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def id_of(key: Ed25519PrivateKey) -> NodeId:
    return NodeId(id_from_public_key(raw(key)))


def b64(data: bytes) -> str:
    return b64encode(data).decode()


@dataclass
class Clock:
    offset: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset


@dataclass
class Hub:
    """What a hub's join service works with; `replace` gives it other keys while it serves."""

    keys: Keys = field(default_factory=lambda: found(time.time()))
    state: FakeState = field(default_factory=lambda: FakeState(FakeStore()))
    clock: Clock = field(default_factory=Clock)
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    port: int = 0
    received: list[bytes] = field(default_factory=list[bytes])
    certify: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.invitations = InvitationBook(self.state)
        self.members = MemberBook(self.state)

    @property
    def authority(self) -> NetworkAuthority:
        return self.keys.authority

    @property
    def trust(self) -> Trust:
        return self.keys.trust

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.port)

    def replace(self, keys: Keys) -> None:
        self.keys = keys
        self.certify()

    async def token(
        self, *, uses: int = 1, seconds: float = 3600, role: Role = "spoke", via: tuple[Address, ...] = ()
    ) -> str:
        invitation, secret = await self.invitations.invite(role, uses, seconds, self.clock())
        return write_token(JoinToken(via or (self.address,), self.trust.pin, invitation.id, secret))

    def client(self) -> httpx.AsyncClient:
        """A client that trusts the hub, for bodies that the product's own client never sends."""
        context = client_context(self.trust.issuers(self.clock()))
        context.check_hostname = False
        return httpx.AsyncClient(verify=context, base_url=f"https://127.0.0.1:{self.port}", trust_env=False)

    async def join(self, key: Ed25519PrivateKey | None = None, role: Role = "spoke") -> Welcomed:
        """A new member."""
        return await join_with(await self.token(role=role), key)


@asynccontextmanager
async def serving(
    hub: Hub, folder: Path, *, role: Role = "hub", offered_trust: bytes | None = None, version: str = VERSION
) -> AsyncIterator[Hub]:
    """Serve the hub's join port; `offered_trust` replaces what /v1/ca gives, as somebody in the middle would."""
    folder = folder / id_of(hub.key)
    folder.mkdir()
    chain, key = folder / "chain.pem", folder / "key.pem"
    key.write_bytes(hub.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    chain.write_text(hub.authority.issue(raw(hub.key), role, time.time()).certificate)
    context = server_context(chain, key)

    def certify() -> None:
        chain.write_text(hub.authority.issue(raw(hub.key), role, time.time()).certificate)
        context.load_cert_chain(chain, key)

    hub.certify = certify
    service = JoinService(
        ThisHub(node=id_of(hub.key), instance="this process", version=version),
        hub,
        hub.invitations,
        hub.members,
        hubs=lambda: HubAddresses(("tls://127.0.0.1:8472",), (str(hub.address),)),
        now=hub.clock,
    ).app()

    async def app(scope: dict[str, object], receive: Callable[[], Awaitable[dict[str, bytes]]], send: object) -> None:
        async def overhear() -> dict[str, bytes]:
            message = await receive()
            hub.received.append(message.get("body", b""))
            return message

        if offered_trust is not None and scope.get("path") == "/v1/ca":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": offered_trust})
            return
        await service(scope, overhear, send)

    async with listening(app, context) as port:
        hub.port = port
        yield hub


@asynccontextmanager
async def listening(app: object, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Serve an ASGI app over TLS on a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, ssl_context_factory=lambda _config, _default: context, log_config=None, lifespan="off", proxy_headers=False
    )
    server = uvicorn.Server(config)
    config.load()
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        server.force_exit = True
        await task


async def join_with(token: str, key: Ed25519PrivateKey | None = None, name: str = "shed") -> Welcomed:
    key = key or Ed25519PrivateKey.generate()
    return await join(token, key, name=name, version=VERSION, now=time.time)
