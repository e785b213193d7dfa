"""How a node comes to a network: it founds one, or it joins one."""

import platform
import re
import socket
import time

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from felloe.catalog.approval.curator_key import CuratorKey
from felloe.catalog.approval.metadata import found as found_catalog
from felloe.catalog.approval.metadata import pin_of
from felloe.domain.approval import Bundle
from felloe.domain.ids import NodeId, id_from_public_key
from felloe.domain.roster import Endpoints
from felloe.host.addresses import reachable_addresses
from felloe.hubs.addresses import mesh_urls, peer_addresses
from felloe.hubs.records import CATALOG, HUBS, MEMBER, Generation, Hub, HubSet, encode
from felloe.hubs.saved_state import SAVED_NAME, write_saved
from felloe.hubs.store import Entry
from felloe.hubs.topics import TRUST
from felloe.mesh.authority import NetworkAuthority
from felloe.mesh.membership import ListedMember, Membership
from felloe.mesh.rotation import found
from felloe.node.config import HUB_COUNTS, NodeConfig, PeerConfig
from felloe.node.network_files import NetworkFiles

_ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on


def node_name(config: NodeConfig, wanted: str = "") -> str:
    """What people call this node: as asked, as configured, or the host's name."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", platform.node() or socket.gethostname()).strip(".-_")
    return (wanted or config.name or host or "node")[:63]


def advertised_hosts(peer: PeerConfig) -> tuple[str, ...]:
    """Host names or addresses at which others dial this hub."""
    if peer.advertise:
        return peer.advertise
    return reachable_addresses() if peer.host in _ANY_ADDRESS else (peer.host,)


def own_host(peer: PeerConfig) -> str:
    """Where the hub itself dials its own servers."""
    if peer.host in _ANY_ADDRESS:
        return "127.0.0.1" if peer.host == "0.0.0.0" else "::1"  # noqa: S104
    return peer.host


def endpoints(peer: PeerConfig) -> Endpoints:
    """Where other nodes dial this one when it is a hub."""
    return Endpoints(
        hosts=advertised_hosts(peer),
        peer=peer.port,
        mesh=peer.mesh_port,
        route=peer.route_port,
        state=peer.state_port,
    )


def found_network(files: NetworkFiles, config: NodeConfig, name: str) -> Membership:
    """Make a new network with this node as its hub and its owner as the one curator; stored when this returns."""
    now = time.time()
    public_key = raw_public_key(files.node_key())
    node = NodeId(id_from_public_key(public_key))
    path = files.curator_key_path
    curator = CuratorKey.load(path) or CuratorKey.create(path)
    catalogs: list[Bundle] = []

    def pin_catalog(authority: NetworkAuthority) -> bytes:
        catalogs.append(found_catalog(name, curator, authority, now))
        return pin_of(catalogs[0])

    keys = found(now, pin_catalog)
    files.save_keys(keys)
    where = endpoints(config.peer)
    files.save_credential(keys.authority.issue(public_key, "hub", now, addresses=where.hosts))
    member = ListedMember(id=node, name=name, role="hub", public_key=public_key, joined_at=now)
    hub = Hub(id=node, name=name, public_key=public_key, endpoints=where, since=now)
    write_saved(
        files.saver(SAVED_NAME),
        Generation(number=1, hubs=(node,)),
        {
            MEMBER + node: Entry(encode(member), 0),
            HUBS: Entry(encode(HubSet(hubs=(hub,), wanted=HUB_COUNTS[config.hubs])), 0),
            TRUST: Entry(keys.trust.encoded, 0),
            CATALOG: Entry(catalogs[0].encode(), 0),
        },
    )
    membership = Membership(
        network=keys.authority.network,
        node=node,
        name=name,
        role="hub",
        account=keys.authority.application_account,
        nats_urls=mesh_urls(msgspec.structs.replace(where, hosts=(own_host(config.peer),))),
        hubs=peer_addresses(where),
    )
    files.save_membership(membership)
    return membership


def raw_public_key(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes that a node id is made from."""
    return key.public_key().public_bytes_raw()
