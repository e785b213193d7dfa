"""What the operator API carries out, on the parts of a running node."""

import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec

from felloe import __version__
from felloe.console.messages import (
    DrainRequest,
    DrainStep,
    InvitationCreated,
    InvitationRequest,
    InvitationRow,
    KeyCreated,
    KeyRequest,
    KeyRow,
    LoadRequest,
    MemberRow,
    NameRequest,
    Nothing,
    Progress,
    PullRequest,
    Status,
    UnloadRequest,
    UpstreamRequest,
    UpstreamRow,
)
from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.domain.roster import Replica
from felloe.domain.versions import gap
from felloe.gateway.keys import KeyRecord
from felloe.hubs.addresses import all_peer_addresses
from felloe.hubs.topics import KEYS
from felloe.mesh.join_token import MOST_ADDRESSES, Address, JoinToken, parse_address, write_token
from felloe.mesh.services import NodeClient
from felloe.node.catalog_operations import CatalogOperations
from felloe.node.commands import RemoteDrain
from felloe.node.hardware_operations import HardwareOperations
from felloe.node.hub import Hub
from felloe.node.hub_operations import HubOperations
from felloe.node.model_operations import ModelOperations
from felloe.node.root_operations import RootOperations
from felloe.node.serving_operations import ServingOperations

if TYPE_CHECKING:
    from felloe.node.node import Node

_LONGEST_INVITATION_SECONDS = 30 * 86_400.0
_MOST_USES = 10_000
KeyChange = Callable[[list[KeyRecord]], list[KeyRecord]]


class NodeOperations:
    """Implements the console's `Operations` for one node."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self.hubs = HubOperations(node)
        self.root = RootOperations(node, self.hubs)
        self.catalog = CatalogOperations(node)
        self.serving = ServingOperations(node, self.hubs)
        self.hardware = HardwareOperations(node)
        self.library = ModelOperations(node, self.catalog)
        self._alone_since = 0.0 if node.connection.is_up else node.started_at
        node.connection.on_up(self._line_up)
        node.connection.on_down(self._line_down)

    def _line_up(self) -> None:
        self._alone_since = 0.0

    def _line_down(self) -> None:
        self._alone_since = time.time()

    async def status(self) -> Status:
        """This node in short."""
        node = self._node
        return Status(
            node=node.membership.node,
            name=node.membership.name,
            network=node.membership.network,
            roles=(node.membership.role,),
            version=__version__,
            base_url=node.gateway.base_url,
            connected=node.connection.is_up,
            hubs=node.membership.hubs,
            home=str(node.home.folder),
            process=os.getpid(),
            started_at=node.started_at,
            key_required=node.config.api.require_key,
            credential_expires_at=node.identity.keeper.current.expires_at,
            alone_since=self._alone_since,
        )

    async def members(self) -> list[MemberRow]:
        """The roster as this node sees it."""
        roster = self._node.roster.snapshot()
        now, leader = time.time(), self.hubs.leader()
        problems = {str(model): reason for model, reason in self._node.engines.problems().items()}
        problems |= self._node.loading.problems()
        return [
            MemberRow(
                record=member.record,
                load=member.load,
                alive=member.alive or node == roster.this,
                this=node == roster.this,
                silent_seconds=max(0.0, now - member.seen_at),
                note=gap(__version__, member.record.version),
                leads=node == leader,
                problems=problems if node == roster.this else {},
                pulls=self._node.pulling.running() if node == roster.this else (),
            )
            for node, member in roster.members.items()
        ]

    async def pull(self, request: PullRequest) -> AsyncGenerator[Progress, None]:
        """Bring a model into the store; ends with the model."""
        async with aclosing(self._node.pulling.steps(request)) as steps:
            async for step in steps:
                yield step

    async def load(self, request: LoadRequest) -> Replica:
        """Load a model of the store here."""
        return await self._node.loading.load(request)

    async def unload(self, request: UnloadRequest) -> Nothing:
        """Stop serving a model here."""
        await self._node.loading.unload(request.name, request.drain_seconds)
        return Nothing()

    async def drain(self, request: DrainRequest) -> AsyncGenerator[DrainStep, None]:
        """Have a node finish what runs, then stop; tells how far it has come. Another node is drained from a hub."""
        membership = self._node.membership
        wanted = self.hubs.find(request.node).id if request.node not in ("", membership.name) else membership.node
        if wanted != membership.node:
            async for step in self._remote_drain(wanted).steps(request.timeout_seconds):
                yield step
            return
        self._node.draining.begin(request.timeout_seconds)
        async for step in self._node.draining.steps():
            yield step

    async def invite(self, request: InvitationRequest) -> InvitationCreated:
        """Make a join token."""
        hub = self.hubs.acting_hub("invitations are made")
        if request.role != "spoke":
            detail = "nodes are invited as spokes; once one has joined, `felloe promote` makes it a hub"
            raise FelloeError("invalid_value", detail)
        if not 1 <= request.uses <= _MOST_USES:
            raise FelloeError("invalid_value", f"uses is between 1 and {_MOST_USES}")
        if not 1 <= request.ttl_seconds <= _LONGEST_INVITATION_SECONDS:
            raise FelloeError("invalid_value", "an invitation is valid for between 1 second and 30 days")
        invitation, secret = await hub.invitations.invite(
            "spoke", uses=request.uses, seconds=request.ttl_seconds, now=time.time()
        )
        token = write_token(
            JoinToken(
                addresses=_token_addresses(hub),
                pin=self._node.identity.trust.pin,
                id=invitation.id,
                secret=secret,
            )
        )
        return InvitationCreated(invitation.id.hex(), token, invitation.role, invitation.uses, invitation.expires_at)

    async def invitations(self) -> list[InvitationRow]:
        """The invitations that can still be used."""
        now = time.time()
        return [
            InvitationRow(one.id.hex(), one.role, one.uses - len(one.joined), one.expires_at)
            for one in self.hubs.acting_hub("invitations are kept").invitations.all()
            if one.standing(now) == "open"
        ]

    async def withdraw_invitation(self, request: NameRequest) -> Nothing:
        """Make an invitation useless."""
        try:
            identifier = bytes.fromhex(request.name)
        except ValueError as error:
            raise FelloeError("not_found", "there is no invitation with this id") from error
        await self.hubs.acting_hub("invitations are withdrawn").invitations.withdraw(identifier)
        return Nothing()

    async def create_key(self, request: KeyRequest) -> KeyCreated:
        """Make an API key; on a hub it is valid in the whole network once this returns."""
        expires = int(time.time() + request.expires_seconds) if request.expires_seconds else None
        if self._node.hub is None:
            record, plaintext = self._node.keys.create(request.name, expires)
        else:
            record, plaintext = self._node.keys.new(request.name, expires)
            await self._share(lambda shared: [*(one for one in shared if one.id != record.id), record])
        return KeyCreated(record.id, record.name, plaintext)

    async def keys(self) -> list[KeyRow]:
        """Every key that is valid here."""
        return [_key_row(record) for record in self._node.keys.list()]

    async def revoke_key(self, request: NameRequest) -> KeyRow:
        """Take a key back, here and, on a hub, in the whole network."""
        found = next((one for one in self._node.keys.list() if request.name in (one.id, one.name)), None)
        if found is None:
            raise FelloeError("not_found", "there is no key with this id or name")
        if any(one.id == found.id for one in self._node.keys.records()):
            self._node.keys.revoke(found.id)
        else:
            await self._share(lambda shared: [one for one in shared if one.id != found.id])
        return _key_row(found)

    async def upstreams(self) -> list[UpstreamRow]:
        """Servers of the owner's own, in use or found."""
        return await self._node.upstreams.rows()

    async def add_upstream(self, request: UpstreamRequest) -> UpstreamRow:
        """Serve the models of such a server."""
        return await self._node.upstreams.add(request)

    async def remove_upstream(self, request: NameRequest) -> Nothing:
        """Stop serving them."""
        await self._node.upstreams.remove(request.name)
        return Nothing()

    async def stop(self) -> Nothing:
        """End this node, in order."""
        self._node.stopping.set()
        return Nothing()

    def _remote_drain(self, wanted: NodeId) -> RemoteDrain:
        node = self._node
        member = node.roster.snapshot().members.get(wanted)
        if node.hub is None:
            raise FelloeError(
                "wrong_node", f"another node is drained from itself or from a hub; {self.hubs.elsewhere()}"
            )
        if member is None or not member.alive:
            raise FelloeError("node_unreachable", f"{wanted} is not in touch with the network")
        return RemoteDrain(wanted, member.record.name, NodeClient(node.connection).tell, node.roster)

    async def _share(self, change: KeyChange) -> None:
        """Change the network's list of keys; it holds here when this returns. Raises `forbidden` on a spoke."""
        hub = self.hubs.acting_hub("keys of the network are changed")

        def changed(before: bytes | None) -> bytes:
            return msgspec.json.encode(change(_records(before)))

        self._node.keys.replace_network(_records(await hub.state.change(KEYS, changed)))


def _records(stored: bytes | None) -> list[KeyRecord]:
    return msgspec.json.decode(stored, type=list[KeyRecord]) if stored else []


def _key_row(record: KeyRecord) -> KeyRow:
    return KeyRow(record.id, record.name, record.created, record.expires or 0)


def _token_addresses(hub: Hub) -> tuple[Address, ...]:
    """Where the machine that joins may ask: this hub first, then the others."""
    this = hub.identity.membership.node
    hubs = sorted(hub.hubs.hubs, key=lambda one: one.id != this)
    return tuple(parse_address(address) for address in all_peer_addresses(hubs)[:MOST_ADDRESSES])
