"""Founding a network's keys and replacing them: pure but for the new keys that it makes.

Each function gives what to store: a trust list that every node gets, and an authority that only hubs get, of the same
version. With an overlap the old keys are believed beside the new ones for so long; with none they go at once.
"""

from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.mesh.authority import NetworkAuthority
from felloe.mesh.root_key import RootKey
from felloe.mesh.trust import MOST_FORMER, MOST_ISSUERS, MOST_ROOTS, Trust, Trusted, TrustList, extend

LONGEST_OVERLAP = 30 * 24 * 3600
"""Seconds."""


class Keys(NamedTuple):
    """All of a network's keys, and the list that says which of them to trust."""

    root: RootKey
    authority: NetworkAuthority
    trust: Trust


def found(now: float, catalog: Callable[[NetworkAuthority], bytes] | None = None) -> Keys:
    """A new network; `now` in Unix seconds. `catalog` makes its catalogue of models and gives the pin to name."""
    root = RootKey.create(now)
    authority = NetworkAuthority.create(root, now)
    first = TrustList(
        network=root.network,
        version=1,
        issued_at=int(now),
        roots=(Trusted(root.certificate),),
        issuers=(Trusted(authority.issuer),),
        catalog=b"" if catalog is None else catalog(authority),
    )
    return Keys(root, authority, extend(None, first, [root]))


def rotate(keys: Keys, now: float, overlap_seconds: float) -> Keys:
    """The same root with new issuing, operator and user signing keys.

    Raises `forbidden` when the root is not the network's current one or too many earlier keys still overlap,
    `wrong_network`, `invalid_value` for an odd overlap.
    """
    until = _until(keys, now, overlap_seconds)
    roots = tuple(root for root in keys.trust.list.roots if root.holds(now))
    return _replaced(keys, keys.root, roots, now, until)


def rotate_root(keys: Keys, now: float, overlap_seconds: float) -> Keys:
    """A new root, and with it all other keys anew. Join tokens of the old root work until the overlap ends.

    The old root and the new one sign the list, and the old one signs nothing that counts after it. Raises as `rotate`.
    """
    until = _until(keys, now, overlap_seconds)
    root = RootKey.create(now, keys.trust.network)
    roots = (Trusted(root.certificate), *_retiring(keys.trust.list.roots, now, until))
    return _replaced(keys, root, roots, now, until)


def _replaced(keys: Keys, root: RootKey, roots: tuple[Trusted, ...], now: float, until: int) -> Keys:
    held = keys.trust.list
    version = held.version + 1
    authority = keys.authority.successor(root, version, now, until)
    issuers = (Trusted(authority.issuer), *_retiring(held.issuers, now, until))
    if len(roots) > MOST_ROOTS or len(issuers) > MOST_ISSUERS:
        raise FelloeError("forbidden", "too many earlier keys still overlap; wait for their end, or leave no overlap")
    named = {one.pin() for one in roots}
    gone = [one.pin() for one in held.roots if one.pin() not in named]
    new = TrustList(
        network=held.network,
        version=version,
        issued_at=int(now),
        roots=roots,
        issuers=issuers,
        former=(*gone, *held.former)[:MOST_FORMER],
        catalog=held.catalog,
    )
    signers = [keys.root] if root is keys.root else [keys.root, root]
    return Keys(root, authority, extend(keys.trust, new, signers))


def _until(keys: Keys, now: float, overlap_seconds: float) -> int:
    if not 0 <= overlap_seconds <= LONGEST_OVERLAP:
        days = LONGEST_OVERLAP // 86400
        raise FelloeError("invalid_value", f"an overlap lasts from 0 seconds to {days} days", param="overlap")
    if keys.root.network != keys.trust.network:
        raise FelloeError("wrong_network", f"the root is of network {keys.root.network}, not {keys.trust.network}")
    if keys.root.pin != keys.trust.pin:
        raise FelloeError("forbidden", "this root was replaced by another one; use the network's present root")
    return int(now + overlap_seconds)


def _retiring(trusted: tuple[Trusted, ...], now: float, until: int) -> tuple[Trusted, ...]:
    """Those that hold now, the newest first; none of them longer than `until`."""
    if until <= now:
        return ()
    return tuple(replace(one, until=min(one.until or until, until)) for one in trusted if one.holds(now))
