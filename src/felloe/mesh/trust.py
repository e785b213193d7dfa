"""The trust list: which roots and issuers a network's nodes believe, signed by a root, and never an older one again.

A list names one current root, roots that retire (good only for join tokens that were made before), and the issuers that
TLS trusts. A new list counts where the current root of the list that a node holds has signed it. So that a node which
slept through the replacement of a root still finds its way, the lists that replaced one travel beside the newest.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple, Protocol

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec import Meta, Struct

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NetworkId
from felloe.mesh.certificates import check_issuer, check_root, pin, read_chain

LARGEST_TRUST = 128 << 10
"""Bytes of an encoded trust: the newest list and those that lead to it."""

MOST_ISSUERS = 6
MOST_ROOTS = 4
MOST_FORMER = 16
_MOST_LISTS = 8
_CONTEXT = b"felloe trust 1\0"

_Pem = Annotated[str, Meta(max_length=2048)]
_Pin = Annotated[bytes, Meta(min_length=32, max_length=32)]

Standing = Literal["current", "retiring", "former", "unknown"]


class Trusted(Struct, frozen=True):
    """A root or an issuer in PEM; `until` in Unix seconds says when it retires, 0 that it does not."""

    certificate: _Pem
    until: int = 0

    def holds(self, now: float) -> bool:
        """Whether it has not retired yet."""
        return not self.until or now < self.until

    def read(self) -> x509.Certificate:
        """The certificate; raises `bad_state` when it is none, or several."""
        (*more, last) = read_chain(self.certificate)
        if more:
            raise FelloeError("bad_state", "a trust list names one certificate at a time")
        return last

    def pin(self) -> bytes:
        """SHA-256 of the certificate's public key info."""
        return pin(self.read())


class TrustList(Struct, frozen=True, kw_only=True):
    """What a root signs. `network` is the id of the first root for ever; `former` holds the pins of replaced roots.

    `catalog` is the pin of the network's catalogue of models (SHA-256 of its first root), for ever once it is named.
    """

    network: NetworkId
    version: Annotated[int, Meta(ge=1, lt=1 << 53)]
    issued_at: int
    roots: Annotated[tuple[Trusted, ...], Meta(min_length=1, max_length=MOST_ROOTS)]
    issuers: Annotated[tuple[Trusted, ...], Meta(min_length=1, max_length=MOST_ISSUERS)]
    former: Annotated[tuple[_Pin, ...], Meta(max_length=MOST_FORMER)] = ()
    catalog: Annotated[bytes, Meta(max_length=32)] = b""


class _Signature(Struct, frozen=True):
    pin: _Pin
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class _Signed(Struct, frozen=True):
    body: bytes
    signatures: Annotated[tuple[_Signature, ...], Meta(min_length=1, max_length=2)]


class _Chain(Struct, frozen=True):
    format: Literal[1]
    lists: Annotated[tuple[_Signed, ...], Meta(min_length=1, max_length=_MOST_LISTS)]


class _Entry(NamedTuple):
    """One signed list of a chain, taken apart and found consistent in itself; who signed it is not checked yet."""

    list: TrustList
    signed: _Signed
    keys: dict[bytes, Ed25519PublicKey]
    """The keys of its roots by their pins."""

    current: bytes
    """The pin of its current root."""


class Signer(Protocol):
    """A root that can sign."""

    @property
    def pin(self) -> bytes:
        """SHA-256 of its public key info."""
        ...

    def sign(self, statement: bytes) -> bytes:
        """Its raw signature."""
        ...


@dataclass(frozen=True)
class Trust:
    """A verified trust list. `encoded` is what is stored and handed on; equal trusts have equal lists."""

    list: TrustList
    encoded: bytes

    @property
    def network(self) -> NetworkId:
        """The network whose trust this is."""
        return self.list.network

    @property
    def version(self) -> int:
        """Grows with every replacement of keys."""
        return self.list.version

    @property
    def pin(self) -> bytes:
        """The current root's pin, for new join tokens."""
        return _current(self.list)

    @property
    def catalog(self) -> bytes:
        """The pin of the network's catalogue; empty where an older version founded the network."""
        return self.list.catalog

    @property
    def issuer_key(self) -> bytes:
        """The raw public key that hubs sign with now."""
        current = next(issuer for issuer in self.list.issuers if not issuer.until).read().public_key()
        if not isinstance(current, Ed25519PublicKey):
            raise FelloeError("bad_state", "the trust list's issuer has no Ed25519 key")
        return current.public_bytes_raw()

    def issuers(self, now: float) -> str:
        """The issuing certificates (PEM) to trust at `now` (Unix seconds), the newest first."""
        return "".join(issuer.certificate for issuer in self.list.issuers if issuer.holds(now))

    def standing(self, root_pin: bytes, now: float) -> Standing:
        """What the root with this pin is at `now`."""
        for root in self.list.roots:
            if root.pin() == root_pin:
                return "former" if not root.holds(now) else "retiring" if root.until else "current"
        return "former" if root_pin in self.list.former else "unknown"


def read(stored: bytes) -> Trust:
    """The trust that this program has stored itself; raises `bad_state` when it is damaged."""
    try:
        entries = _decode(stored)
        _check_links(entries)
    except FelloeError as error:
        raise FelloeError("bad_state", f"the trust list is damaged: {error.detail}") from error
    return Trust(entries[-1].list, stored)


def accept(offered: bytes, held: Trust) -> Trust:
    """The newer trust that somebody offers to a node which holds `held`; `held` itself where it is the same.

    Raises `wrong_network` for another network's, `trust_refused` for one that is older, damaged, or signed by no
    current root of the list held.
    """
    entries = _decode(offered)
    newest = entries[-1].list
    if newest.network != held.network:
        raise FelloeError("wrong_network", f"the trust list is of network {newest.network}, not {held.network}")
    if newest.version < held.version:
        raise _refused(f"the trust list offered is of version {newest.version}; version {held.version} is held")
    known = _decode(held.encoded)
    if newest.version == held.version:
        if entries[-1].signed.body != known[-1].signed.body:
            raise _refused(f"there are two different trust lists of version {held.version}")
        return held
    for entry in entries:
        if entry.list.version > known[-1].list.version:
            _check_follows(entry, known[-1])
            known.append(entry)
    return _trust(known)


def newer(offered: bytes, held: Trust) -> Trust:
    """As `accept`, but a list older than the one held changes nothing: a hub may not have heard of the newest yet."""
    entries = _decode(offered)
    if entries[-1].list.network == held.network and entries[-1].list.version < held.version:
        return held
    return accept(offered, held)


def for_pin(offered: bytes, root_pin: bytes, now: float) -> Trust:
    """The trust that a join token's pin vouches for, from a hub that nobody vouches for yet.

    Raises `token_refused` where the pinned root has been replaced, `wrong_network` where it is unknown, and
    `trust_refused` for what is damaged or does not follow from it.
    """
    entries = _decode(offered)
    newest = Trust(entries[-1].list, offered)
    standing = newest.standing(root_pin, now)
    if standing == "former":
        raise FelloeError(
            "token_refused", "the token is from before the network's root was replaced; ask for a new invitation"
        )
    begin = max((place for place, entry in enumerate(entries) if root_pin in _signers(entry, entry.keys)), default=None)
    if standing == "unknown" or begin is None:
        raise FelloeError("wrong_network", "the hub's network has another root than the one that the token names")
    _check_links(entries[begin:])
    return _trust(_vouched_for(entries, begin))


def extend(before: Trust | None, new: TrustList, signers: Sequence[Signer]) -> Trust:
    """`new`, signed, following on what was trusted before. Raises `trust_refused` where nobody would accept it."""
    body = msgspec.json.encode(new)
    signed = _Signed(body, tuple(_Signature(signer.pin, signer.sign(_CONTEXT + body)) for signer in signers))
    alone = msgspec.json.encode(_Chain(1, (signed,)))
    return accept(alone, before) if before is not None else read(alone)


def _trust(entries: Sequence[_Entry]) -> Trust:
    """The newest list and the newest of those that replaced a root: two roots have signed these."""
    replaced = [entry for entry in entries[:-1] if len(entry.signed.signatures) > 1]
    kept = [*replaced[-(_MOST_LISTS - 1) :], entries[-1]]
    return Trust(entries[-1].list, msgspec.json.encode(_Chain(1, tuple(entry.signed for entry in kept))))


def _vouched_for(entries: list[_Entry], begin: int) -> list[_Entry]:
    """The entries from `begin`, which are verified, and before them those that they vouch for.

    A node that joins today may be a hub tomorrow and then shows others the way from roots long gone.
    """
    known = {found for entry in entries[begin:] for found in (*entry.keys, *entry.list.former)}
    while begin:
        earlier = entries[begin - 1]
        if not known & _signers(earlier, earlier.keys) or not _follows(entries[begin], earlier):
            break
        known.update(earlier.keys, earlier.list.former)
        begin -= 1
    return entries[begin:]


def _check_links(entries: Sequence[_Entry]) -> None:
    first = entries[0]
    if not _signers(first, first.keys):
        raise _refused("none of its own roots has signed the trust list")
    for before, after in pairwise(entries):
        _check_follows(after, before)


def _check_follows(entry: _Entry, before: _Entry) -> None:
    if not _follows(entry, before):
        raise _refused("the root that is trusted here has not signed the trust list offered")
    if before.list.catalog not in (b"", entry.list.catalog):
        raise _refused("the trust list offered names another catalogue of models")


def _follows(entry: _Entry, before: _Entry) -> bool:
    """Whether the current root of `before` has signed `entry`, and nobody else but a root that it names.

    A retiring root has no say any more.
    """
    signers = _signers(entry, entry.keys | before.keys)
    return before.current in signers and len(signers) == len(entry.signed.signatures)


def _signers(entry: _Entry, keys: dict[bytes, Ed25519PublicKey]) -> set[bytes]:
    """The pins of those of these roots that have signed it."""
    return {one.pin for one in entry.signed.signatures if one.pin in keys and _fits(keys[one.pin], one, entry)}


def _fits(key: Ed25519PublicKey, signature: _Signature, entry: _Entry) -> bool:
    try:
        key.verify(signature.signature, _CONTEXT + entry.signed.body)
    except InvalidSignature:
        return False
    return True


def _decode(data: bytes) -> list[_Entry]:
    """The lists in `data`, oldest first, each consistent in itself; raises `trust_refused`."""
    if len(data) > LARGEST_TRUST:
        raise _refused(f"a trust list has at most {LARGEST_TRUST} bytes")
    try:
        chain = msgspec.json.decode(data, type=_Chain)
        entries = [_entry(signed) for signed in chain.lists]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _refused("what was offered is no trust list") from error
    for before, after in pairwise(entries):
        if (after.list.network, True) != (before.list.network, after.list.version > before.list.version):
            raise _refused("the lists of what was offered do not follow each other")
    return entries


def _entry(signed: _Signed) -> _Entry:
    new = msgspec.json.decode(signed.body, type=TrustList)
    try:
        roots = [root.read() for root in new.roots]
        keys = {pin(root): check_root(root, new.network) for root in roots}
        for issuer in new.issuers:
            check_issuer(issuer.read(), roots)
    except FelloeError as error:
        raise _refused(error.detail) from error
    if len(keys) != len(roots) or not _has_one(new.roots) or not _has_one(new.issuers):
        raise _refused("a trust list names one current root and one current issuer")
    if len(new.catalog) not in (0, 32):
        raise _refused("a trust list names a catalogue by 32 bytes")
    return _Entry(new, signed, keys, _current(new))


def _has_one(trusted: Iterable[Trusted]) -> bool:
    return sum(not one.until for one in trusted) == 1


def _current(trust: TrustList) -> bytes:
    return next(root.pin() for root in trust.roots if not root.until)


def _refused(detail: str) -> FelloeError:
    return FelloeError("trust_refused", detail)
