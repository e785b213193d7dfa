"""Hubs that keep a network's state with real state servers on loopback, without the rest of a node."""

import time
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from felloe.domain.ids import NodeId, id_from_public_key
from felloe.domain.roster import Endpoints
from felloe.host.files import write_atomic
from felloe.host.processes import end, spawn
from felloe.hubs.addresses import state_routes
from felloe.hubs.network_state import NetworkState
from felloe.hubs.records import LEASE, Generation, Hub, HubSet, Lease, encode
from felloe.hubs.saved_state import SAVED_NAME, SavedState, read_saved
from felloe.hubs.state_server import StatePlace
from felloe.hubs.store import Entry
from felloe.mesh.rotation import found
from felloe.mesh.server_config import Routes, TlsFiles
from networks import free_run

TERM = 1


class KeepingHub:
    """One hub's state servers and copy; may be closed and started again."""

    def __init__(self, house: "StateHouse", folder: Path) -> None:
        self._house = house
        key = Ed25519PrivateKey.generate()
        self.public_key = key.public_key().public_bytes_raw()
        self.node = NodeId(id_from_public_key(self.public_key))
        self.port = free_run(2)
        self.folder = folder / self.node[:8]
        self.folder.mkdir()
        credential = house.authority.issue(self.public_key, "hub", time.time(), addresses=["127.0.0.1"])
        tls = TlsFiles(
            certificate=self.folder / "node.crt", key=self.folder / "node.key", authorities=self.folder / "ca.pem"
        )
        tls.certificate.write_text(credential.certificate)
        tls.authorities.write_text(house.authority.issuer)
        tls.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.place = StatePlace(
            node=self.node,
            directory=self.folder,
            logs=self.folder,
            tls=tls,
            spawn=spawn,
            end=end,
        )
        self.state: NetworkState | None = None

    @property
    def saved_path(self) -> Path:
        return self.folder / SAVED_NAME

    async def start(self, saved: SavedState | None = None) -> NetworkState:
        """Start from `saved`, or from what the file holds."""
        if saved is None:
            saved = read_saved(self.saved_path.read_bytes(), self.saved_path)
        assert saved is not None
        self.state = NetworkState(
            self.place, saved, save=lambda data: write_atomic(self.saved_path, data), routes=self._routes
        )
        await self.state.start()
        return self.state

    async def found(self) -> NetworkState:
        """The first hub of a network, leading with term 1."""
        lease = Lease(holder=self.node, term=TERM, beat=0, seconds=3600)
        entries = {"keys": Entry(b"[]", 1), LEASE: Entry(encode(lease), 2)}
        return await self.start(SavedState(generation=Generation(number=1, hubs=(self.node,)), entries=entries))

    async def follow(self, leader: NetworkState) -> NetworkState:
        """A hub that was told where the state is, and has none of it."""
        return await self.start(SavedState(generation=leader.generations.current, entries={}))

    async def close(self) -> None:
        state, self.state = self.state, None
        if state is not None:
            await state.close()

    @property
    def record(self) -> Hub:
        """This hub as the others know it."""
        endpoints = Endpoints(hosts=("127.0.0.1",), peer=1, mesh=1, route=1, state=self.port)
        return Hub(id=self.node, name="hub", public_key=self.public_key, endpoints=endpoints, since=0)

    def _routes(self, number: int, hubs: tuple[NodeId, ...]) -> Routes | None:
        known = HubSet(hubs=tuple(hub.record for hub in self._house.hubs.values()))
        return state_routes(known, hubs, number, self.record, "127.0.0.1")


class StateHouse:
    """Some hubs of one network; `close` ends what they started."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.authority = found(time.time()).authority
        self.hubs: dict[NodeId, KeepingHub] = {}

    def add(self) -> KeepingHub:
        hub = KeepingHub(self, self._folder)
        self.hubs[hub.node] = hub
        return hub

    async def close(self) -> None:
        for hub in self.hubs.values():
            await hub.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
