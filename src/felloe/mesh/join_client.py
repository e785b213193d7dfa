"""The side of the node that joins, renews or leaves: trust nothing but the token's pin, and check what comes back.

The trust list is fetched from a hub that nobody vouches for yet; the pinned root must be in it and have signed it. Only
then, on a second connection that must end at an issuer of that list and at a certificate with the hub role, are the
secret and the request sent.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple, NoReturn, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId, id_from_public_key
from felloe.mesh import nats_jwt
from felloe.mesh.authority import NetworkAuthority
from felloe.mesh.certificate_requests import make_request
from felloe.mesh.certificates import check_node_chain
from felloe.mesh.credentials import Credential
from felloe.mesh.join_token import Address, parse_address, read_token
from felloe.mesh.join_wire import (
    CA_PATH,
    INSTANCE_PATH,
    JOIN_PATH,
    LEAVE_PATH,
    NONCE_PATH,
    RENEW_PATH,
    Instance,
    JoinRequest,
    LeaveRequest,
    Left,
    Nonce,
    RenewRequest,
    Welcome,
    leave_statement,
    nonce_time,
    renewal_statement,
)
from felloe.mesh.membership import Membership
from felloe.mesh.peer_client import PeerClient, ask_stranger
from felloe.mesh.trust import Trust, for_pin, newer

_MOST_ADDRESSES = 16
_TRY_ELSEWHERE = ("network_unreachable", "wrong_network", "trust_refused", "internal", "rate_limited")

_Result = TypeVar("_Result")


class Welcomed(NamedTuple):
    """What a node has after it joined or renewed; `authority` only on a hub that renewed."""

    membership: Membership
    credential: Credential
    trust: Trust
    authority: NetworkAuthority | None


async def join(
    token_text: str, node_key: Ed25519PrivateKey, *, name: str, version: str, now: Callable[[], float]
) -> Welcomed:
    """Join the token's network with this node's key; tries the token's addresses in their order.

    Raises `bad_token` before any connection; `wrong_network`, and `token_refused` for a token of a former root, before
    the secret is sent; then what the hub refuses with: `token_refused`, `version_refused`, `forbidden`. Also
    `network_unreachable`.
    """
    token = read_token(token_text)

    async def attempt(address: Address) -> Welcomed:
        offered = await ask_stranger(address, CA_PATH)
        try:
            trust = for_pin(offered, token.pin, now())
        except FelloeError as error:
            raise _Stranger(error) from error
        body = JoinRequest(
            token=token.id, secret=token.secret, request=make_request(node_key), name=name, version=version
        )
        welcome = await PeerClient(address, trust, now()).post(JOIN_PATH, body, Welcome)
        return _accept(welcome, address, trust, node_key, now())

    return await _first_success(token.addresses, attempt, _TRY_ELSEWHERE)


async def renew(
    membership: Membership,
    trust: Trust,
    node_key: Ed25519PrivateKey,
    *,
    version: str,
    addresses: Sequence[str] = (),
    now: Callable[[], float],
) -> Welcomed:
    """A new credential from any known hub, also when the old one has run out or the network's keys were replaced.

    `addresses` are where this node can be dialled as a hub. Raises `forbidden` when this node was removed,
    `version_refused`, `wrong_network`, `network_unreachable`.
    """

    async def attempt(address: Address, trust: Trust) -> Welcomed:
        hub = PeerClient(address, trust, now())
        nonce = (await hub.get(NONCE_PATH, Nonce)).nonce
        statement = renewal_statement(membership.network, membership.node, hub.hub, nonce, version, addresses)
        body = RenewRequest(
            node=membership.node,
            nonce=nonce,
            signature=node_key.sign(statement),
            version=version,
            addresses=tuple(addresses),
        )
        return _accept(await hub.post(RENEW_PATH, body, Welcome), address, trust, node_key, now())

    return await _at_some_hub(membership, trust, attempt)


async def leave(membership: Membership, trust: Trust, node_key: Ed25519PrivateKey, *, now: Callable[[], float]) -> None:
    """Tell some hub that this node is a member no more; its key can never come back. Raises as `renew`."""

    async def attempt(address: Address, trust: Trust) -> None:
        hub = PeerClient(address, trust, now())
        nonce = (await hub.get(NONCE_PATH, Nonce)).nonce
        signature = node_key.sign(leave_statement(membership.network, membership.node, hub.hub, nonce))
        await hub.post(LEAVE_PATH, LeaveRequest(node=membership.node, nonce=nonce, signature=signature), Left)

    await _at_some_hub(membership, trust, attempt)


async def ask_instance(address: Address, trust: Trust, *, now: Callable[[], float]) -> Instance:
    """Which process serves the hub at this address. Raises `wrong_network`, `network_unreachable`."""
    client = PeerClient(address, trust, now())
    instance = await client.get(INSTANCE_PATH, Instance)
    if instance.node != client.hub:
        raise FelloeError("wrong_network", "the hub there gives another node's name")
    return instance


async def ask_time(address: Address, trust: Trust, *, now: Callable[[], float]) -> float:
    """The clock of the hub at this address, in whole Unix seconds. Raises `wrong_network`, `network_unreachable`."""
    nonce = (await PeerClient(address, trust, now()).get(NONCE_PATH, Nonce)).nonce
    return float(nonce_time(nonce))


class _Stranger(Exception):
    """What answered at an address cannot be shown to be of the network; another address may."""

    def __init__(self, error: FelloeError) -> None:
        super().__init__(error.detail)
        self.error = error


async def _at_some_hub(
    membership: Membership, trust: Trust, attempt: Callable[[Address, Trust], Awaitable[_Result]]
) -> _Result:
    """Ask every known hub until one does it: one that was stolen must not be able to keep a node out by refusing it."""

    async def attempt_there(address: Address) -> _Result:
        try:
            return await attempt(address, trust)
        except FelloeError as error:
            if error.code != "wrong_network":
                raise
            fresh = await _newer_at(address, trust)
            if fresh is None:
                raise
        return await attempt(address, fresh)

    return await _first_success([parse_address(hub) for hub in membership.hubs], attempt_there)


async def _newer_at(address: Address, trust: Trust) -> Trust | None:
    """A newer trust list from a hub that the one held does not vouch for: keys may have been replaced meanwhile."""
    try:
        fresh = newer(await ask_stranger(address, CA_PATH), trust)
    except FelloeError:
        return None
    return fresh if fresh.version > trust.version else None


async def _first_success(
    addresses: Iterable[Address],
    attempt: Callable[[Address], Awaitable[_Result]],
    try_elsewhere: Sequence[str] | None = None,
) -> _Result:
    """Go on to the next address after these failures (None: after any); another refusal is final."""
    failures: list[FelloeError] = []
    for address in addresses:
        try:
            return await attempt(address)
        except _Stranger as stranger:
            failures.append(stranger.error)
        except FelloeError as error:
            if try_elsewhere is not None and error.code not in try_elsewhere:
                raise
            failures.append(FelloeError(error.code, f"{address}: {error.detail}", retry_after=error.retry_after))
    if not failures:
        raise FelloeError("network_unreachable", "no hub's address is known")
    # Somebody in the middle matters more than a refusal, and a refusal more than a machine that is off.
    return _raise_worst(failures)


def _raise_worst(failures: list[FelloeError]) -> NoReturn:
    for code in ("wrong_network", "trust_refused", "token_refused", "version_refused", "forbidden"):
        for failure in failures:
            if failure.code == code:
                raise failure
    raise failures[-1]


def _accept(welcome: Welcome, address: Address, trust: Trust, node_key: Ed25519PrivateKey, now: float) -> Welcomed:
    """Check that all of it is for this key and network before anything is stored; put the address that worked first."""
    public_key = node_key.public_key()
    raw = public_key.public_bytes_raw()
    node = NodeId(id_from_public_key(raw))
    membership, credential = welcome.membership, welcome.credential
    if (membership.network, membership.node) != (trust.network, node):
        raise FelloeError("wrong_network", "the hub answered for another network or node")
    trust = newer(welcome.trust, trust)
    try:
        certificate_expiry = check_node_chain(
            credential.certificate,
            trust.issuers(now),
            network=trust.network,
            key=public_key,
            role=membership.role,
            now=now,
        )
        claims = nats_jwt.read_token(credential.user_token)
    except FelloeError as error:
        raise FelloeError("wrong_network", f"the hub's credential is useless: {error.detail}") from error
    if (claims.subject, claims.name) != (nats_jwt.public_name("user", raw), node):
        raise FelloeError("wrong_network", "the hub's NATS token is for another node")
    if not certificate_expiry == claims.expires_at == credential.expires_at > credential.issued_at:
        raise FelloeError("wrong_network", "the parts of the hub's credential run out at different times")
    return Welcomed(_with_reached_first(membership, address), credential, trust, _authority_of(welcome, trust, now))


def _authority_of(welcome: Welcome, trust: Trust, now: float) -> NetworkAuthority | None:
    if not welcome.authority:
        return None
    try:
        authority = NetworkAuthority.from_bytes(welcome.authority)
    except FelloeError as error:
        raise FelloeError("wrong_network", "the hub's signing keys are damaged") from error
    authority.check(trust, now)
    return authority


def _with_reached_first(membership: Membership, address: Address) -> Membership:
    """A hub may not know the address that others reach it at, so the one that worked comes first."""
    try:
        hubs = [str(parse_address(hub)) for hub in membership.hubs[:_MOST_ADDRESSES]]
        servers = [parse_address(url.removeprefix("tls://")) for url in membership.nats_urls[:_MOST_ADDRESSES]]
    except ValueError as error:
        raise FelloeError("network_unreachable", f"the hub names an address that cannot be dialled: {error}") from error
    if servers:
        servers.insert(0, Address(address.host, servers[0].port))
    return msgspec.structs.replace(
        membership,
        hubs=tuple(dict.fromkeys((str(address), *hubs))),
        nats_urls=tuple(dict.fromkeys(f"tls://{server}" for server in servers)),
    )
