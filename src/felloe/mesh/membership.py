"""What is known of a member: by itself, and by the hubs."""

import msgspec

from felloe.domain.ids import NetworkId, NodeId
from felloe.domain.roster import Role


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """What a node keeps of its network, beside its credential and trust list. `account` is a public nkey.

    `hubs` are peer addresses (`host:port`) to renew at, `nats_urls` where to connect.
    """

    network: NetworkId
    node: NodeId
    name: str
    role: Role
    account: str
    nats_urls: tuple[str, ...]
    hubs: tuple[str, ...]


class ListedMember(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the hubs' list; times in Unix seconds. `revoked_at` is 0 for members in good standing.

    `never_hub`: the owner demoted it, so it is not chosen as a hub again unless the owner promotes it. `demoted_at` is
    when it ceased to be a hub, 0 while it is one or if it never was: what was issued to it until then is refused.
    """

    id: NodeId
    name: str
    role: Role
    public_key: bytes
    joined_at: float
    revoked_at: float = 0.0
    never_hub: bool = False
    demoted_at: float = 0.0
