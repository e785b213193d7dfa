"""How a node comes to a network: it founds one, or it joins one."""

import platform
import re
import socket
import time

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from felloe.domain.ids import NodeId, id_from_public_key
from felloe.host.addresses import reachable_addresses
from felloe.mesh.authority import NetworkAuthority
from felloe.mesh.join_token import Address
from felloe.mesh.membership import MemberList, Membership
from felloe.node.config import NodeConfig, PeerConfig
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


def peer_addresses(peer: PeerConfig) -> tuple[Address, ...]:
    """What join tokens and memberships carry."""
    return tuple(Address(host, peer.port) for host in advertised_hosts(peer))


def mesh_urls(hosts: tuple[str, ...], port: int) -> tuple[str, ...]:
    """The message servers' addresses, as the mesh dials them."""
    return tuple(f"tls://[{host}]:{port}" if ":" in host else f"tls://{host}:{port}" for host in hosts)


def found_network(files: NetworkFiles, config: NodeConfig, name: str) -> Membership:
    """Make a new network with this node as its hub; stored when this returns."""
    now = time.time()
    key = files.node_key()
    public_key = raw_public_key(key)
    authority = NetworkAuthority.create(now)
    files.save_authority(authority)
    members = MemberList(files.saver("members.json"))
    members.add(public_key, name, "hub", now)
    hosts = advertised_hosts(config.peer)
    files.save_credential(authority.issue(public_key, "hub", now, addresses=hosts))
    membership = Membership(
        network=authority.network,
        node=NodeId(id_from_public_key(public_key)),
        name=name,
        role="hub",
        root=authority.root,
        issuer=authority.issuer,
        account=authority.application_account,
        nats_urls=mesh_urls((own_host(config.peer),), config.peer.mesh_port),
        hubs=tuple(map(str, peer_addresses(config.peer))),
    )
    files.save_membership(membership)
    return membership


def raw_public_key(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes that a node id is made from."""
    return key.public_key().public_bytes_raw()
