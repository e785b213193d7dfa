"""The keys that a network's hubs hold: they issue every credential, and a root can take them all back.

The issuing key signs node certificates and is believed because the trust list names it. The operator key signs NATS
accounts, and one key a role signs NATS users. All hubs share one authority; the root key is no part of it.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Literal, Self

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NetworkId, NodeId, id_from_public_key
from felloe.domain.roster import Role
from felloe.mesh import certificates, nats_jwt, permissions
from felloe.mesh.credentials import CREDENTIAL_SECONDS, Credential
from felloe.mesh.root_key import RootKey
from felloe.mesh.trust import Trust

_Scoped = Literal["system", "hub", "spoke"]
_SCOPED: tuple[_Scoped, ...] = ("system", "hub", "spoke")


class _Former(msgspec.Struct, frozen=True, kw_only=True):
    """The signing keys (public nkeys) of an earlier generation, which servers believe until then (Unix seconds)."""

    keys: dict[_Scoped, str]
    until: int


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """The encoded authority; private keys as base64 of their raw 32 bytes."""

    format: Literal[2]
    network: NetworkId
    version: int
    issuer_certificate: str
    operator_token: str
    issuer: str
    operator: str
    system_account: str
    application_account: str
    users: dict[_Scoped, str]
    former: tuple[_Former, ...] = ()


class NetworkAuthority:
    """Issues certificates and NATS tokens for one network; `version` is that of the trust list it came with."""

    def __init__(self, record: _Record) -> None:
        self._record = record
        (self._issuer,) = certificates.read_chain(record.issuer_certificate)
        self._issuer_key = _load(record.issuer)
        self._operator_key = _load(record.operator)
        self._users = {role: _load(record.users[role]) for role in _SCOPED}
        self.network: NetworkId = record.network
        self.version: int = record.version
        self.application_account: str = record.application_account
        self.system_account: str = record.system_account
        if self._issuer.public_key() != self._issuer_key.public_key():
            raise ValueError("the issuing key and its certificate do not belong together")

    @classmethod
    def create(cls, root: RootKey, now: float) -> Self:
        """The first authority of a new network; `now` in Unix seconds."""
        accounts = [_account(Ed25519PrivateKey.generate()) for _ in range(2)]
        return cls(_generation(root, 1, (accounts[0], accounts[1]), (), now))

    def successor(self, root: RootKey, version: int, now: float, until: int) -> Self:
        """The same accounts under new keys; the old keys' users are believed until `until` (Unix seconds)."""
        accounts = (self._record.system_account, self._record.application_account)
        return type(self)(_generation(root, version, accounts, self._former(now, until), now))

    def _former(self, now: float, until: int) -> tuple[_Former, ...]:
        if until <= now:
            return ()
        own = _Former(keys=self._public_users(), until=until)
        earlier = [msgspec.structs.replace(one, until=min(one.until, until)) for one in self._living(now)]
        return (own, *earlier)

    def _public_users(self) -> dict[_Scoped, str]:
        return {role: _account(self._users[role]) for role in _SCOPED}

    def _living(self, now: float) -> list[_Former]:
        return [one for one in self._record.former if now < one.until]

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The authority that `to_bytes` gave; raises `bad_state` when it is damaged."""
        try:
            return cls(msgspec.json.decode(data, type=_Record))
        except (KeyError, ValueError, msgspec.MsgspecError, FelloeError):
            # What failed may quote a key.
            raise FelloeError("bad_state", "the network's keys are damaged") from None

    def to_bytes(self) -> bytes:
        """What to store, or to hand to another hub inside TLS; all of it is secret."""
        return msgspec.json.encode(self._record)

    def check(self, trust: Trust, now: float) -> None:
        """Raises `wrong_network` unless the trust list names this authority's network and issuer at `now`."""
        trusted = certificates.read_chain(trust.issuers(now))
        if self.network != trust.network or self._issuer not in trusted:
            raise FelloeError("wrong_network", "the signing keys are not those that the network's root vouches for")

    @property
    def issuer(self) -> str:
        """The issuing certificate in PEM."""
        return self._record.issuer_certificate

    @property
    def public_key(self) -> bytes:
        """The raw public key that issues certificates and signs for the hubs."""
        return self._issuer_key.public_key().public_bytes_raw()

    def sign(self, statement: bytes) -> bytes:
        """Sign catalogue metadata for the hubs: canonical JSON, which no certificate can be taken for."""
        return self._issuer_key.sign(statement)

    @property
    def operator_token(self) -> str:
        """The NATS operator's token; a server needs a restart to take up another."""
        return self._record.operator_token

    def next_end(self, now: float) -> int | None:
        """When an earlier generation's users cease to be believed: `account_tokens` must be pushed anew then."""
        return min((one.until for one in self._living(now)), default=None)

    def account_tokens(self, now: float, revoked: Mapping[bytes, float]) -> dict[str, str]:
        """The token of each NATS account by its public nkey.

        `revoked` maps a raw node key to when it was revoked (Unix seconds); what was issued until then is refused.
        """
        revocations = {nats_jwt.public_name("user", key): int(when) for key, when in revoked.items()}
        generations = [self._public_users(), *(one.keys for one in self._living(now))]
        templates = {
            "system": permissions.system_template(self.application_account),
            "hub": permissions.hub_template(),
            "spoke": permissions.spoke_template(),
        }

        def token(account: str, name: str, *roles: _Scoped) -> str:
            scopes = [nats_jwt.Scope(role, keys[role], templates[role]) for keys in generations for role in roles]
            return nats_jwt.account_token(
                self._operator_key,
                account=account,
                name=name,
                scopes=scopes,
                issued_at=int(now),
                revoked=revocations,
            )

        return {
            self.application_account: token(self.application_account, "felloe", "spoke", "hub"),
            self.system_account: token(self.system_account, "system", "system"),
        }

    def issue(
        self,
        public_key: bytes,
        role: Role,
        now: float,
        *,
        addresses: Sequence[str] = (),
        seconds: int = CREDENTIAL_SECONDS,
        after: float = 0.0,
    ) -> Credential:
        """A credential for a node key (raw 32 bytes) that lasts `seconds`; `addresses` only matter for hubs.

        Servers refuse the key's tokens of up to `after` (Unix seconds, perhaps by another hub's clock), so these are
        dated later.
        """
        issued_at = int(now)
        expires_at = issued_at + seconds
        certificate = certificates.make_node_certificate(
            self._issuer_key,
            self._issuer,
            Ed25519PublicKey.from_public_bytes(public_key),
            network=self.network,
            role=role,
            now=now,
            expires_at=expires_at,
            addresses=addresses,
        )

        def token(signing_key: Ed25519PrivateKey, account: str) -> str:
            return nats_jwt.user_token(
                signing_key,
                account=account,
                user=nats_jwt.public_name("user", public_key),
                name=NodeId(id_from_public_key(public_key)),
                issued_at=max(issued_at, int(after) + 1),
                expires_at=expires_at,
            )

        return Credential(
            certificate=certificates.pem(certificate, self._issuer),
            user_token=token(self._users[role], self.application_account),
            system_token=token(self._users["system"], self.system_account) if role == "hub" else "",
            issued_at=issued_at,
            expires_at=expires_at,
        )


def _generation(
    root: RootKey, version: int, accounts: tuple[str, str], former: tuple[_Former, ...], now: float
) -> _Record:
    """New keys for these accounts (system, application), the issuing one certified by `root`."""
    issuer, operator = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    system_account, application_account = accounts
    operator_token = nats_jwt.operator_token(
        operator, name=root.network, system_account=system_account, issued_at=int(now)
    )
    return _Record(
        format=2,
        network=root.network,
        version=version,
        issuer_certificate=certificates.pem(root.issue(issuer.public_key(), now)),
        operator_token=operator_token,
        issuer=_dump(issuer),
        operator=_dump(operator),
        system_account=system_account,
        application_account=application_account,
        users={role: _dump(Ed25519PrivateKey.generate()) for role in _SCOPED},
        former=former,
    )


def _account(key: Ed25519PrivateKey) -> str:
    return nats_jwt.public_name("account", key.public_key().public_bytes_raw())


def _dump(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.private_bytes_raw()).decode()


def _load(text: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(base64.b64decode(text, validate=True))
