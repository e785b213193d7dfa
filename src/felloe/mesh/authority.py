"""The network's own keys: what makes a network, and issues every credential in it.

One Ed25519 root is the network. Its X.509 form is the root certificate, whose key join tokens pin; its NATS form is the
operator. It signs an issuing key and an operator signing key once, and may go offline after that. Only hubs hold any
of this.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Self

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NetworkId, NodeId, id_from_public_key
from felloe.domain.roster import Role
from felloe.mesh import certificates, nats_jwt, permissions
from felloe.mesh.credentials import CREDENTIAL_SECONDS, Credential

ROOT_FILE = "network-root.key"
"""Holds the root key alone, so that it can be moved offline."""

AUTHORITY_FILE = "network-authority.json"
"""Holds every other key of the network, its certificates and its operator token."""


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the authority's file holds; private keys as base64 of their raw 32 bytes."""

    version: int
    root_certificate: str
    issuer_certificate: str
    operator_token: str
    issuer: str
    operator: str
    system_account: str
    application_account: str
    system_users: str
    hub_users: str
    spoke_users: str


class NetworkAuthority:
    """Issues certificates and NATS tokens for one network. `root_key` is None where the root is kept offline."""

    def __init__(self, record: _Record, root_key: Ed25519PrivateKey | None) -> None:
        self._record = record
        self._root_key = root_key
        (self._root,) = certificates.read_chain(record.root_certificate)
        (self._issuer,) = certificates.read_chain(record.issuer_certificate)
        self._issuer_key = _load(record.issuer)
        self._operator_key = _load(record.operator)
        self._system_users = _load(record.system_users)
        self._users: dict[Role, Ed25519PrivateKey] = {
            "hub": _load(record.hub_users),
            "spoke": _load(record.spoke_users),
        }
        self.network: NetworkId = certificates.check_root(self._root, certificates.pin(self._root))
        self.application_account: str = _account(_load(record.application_account))
        self.system_account: str = _account(_load(record.system_account))

    @classmethod
    def create(cls, now: float) -> Self:
        """A new network; `now` in Unix seconds."""
        root_key = Ed25519PrivateKey.generate()
        root = certificates.make_root(root_key, now)
        issuer_key, operator_key, system_account = (Ed25519PrivateKey.generate() for _ in range(3))
        issuer = certificates.make_issuer(root_key, root, issuer_key.public_key(), now)
        operator_token = nats_jwt.operator_token(
            root_key,
            name=id_from_public_key(_raw(root_key)),
            signing_keys=[nats_jwt.public_name("operator", _raw(operator_key))],
            system_account=_account(system_account),
            issued_at=int(now),
        )
        record = _Record(
            version=1,
            root_certificate=certificates.pem(root),
            issuer_certificate=certificates.pem(issuer),
            operator_token=operator_token,
            issuer=_dump(issuer_key),
            operator=_dump(operator_key),
            system_account=_dump(system_account),
            application_account=_dump(Ed25519PrivateKey.generate()),
            system_users=_dump(Ed25519PrivateKey.generate()),
            hub_users=_dump(Ed25519PrivateKey.generate()),
            spoke_users=_dump(Ed25519PrivateKey.generate()),
        )
        return cls(record, root_key)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """The authority that `to_files` gave; `ROOT_FILE` may be missing. Raises `bad_state` naming the file."""
        try:
            record = msgspec.json.decode(files[AUTHORITY_FILE], type=_Record)
            if record.version != 1:
                raise FelloeError("bad_state", f"{AUTHORITY_FILE} is of version {record.version}, not 1")
            root_key = _load(files[ROOT_FILE].decode()) if ROOT_FILE in files else None
            authority = cls(record, root_key)
        except (KeyError, ValueError, msgspec.MsgspecError) as error:
            raise FelloeError("bad_state", f"{AUTHORITY_FILE} or {ROOT_FILE} is damaged") from error
        if root_key is not None and root_key.public_key() != authority._root.public_key():
            raise FelloeError("bad_state", f"{ROOT_FILE} does not belong to {AUTHORITY_FILE}")
        return authority

    def to_files(self) -> dict[str, bytes]:
        """What to store, by file name; every file is secret."""
        files = {AUTHORITY_FILE: msgspec.json.format(msgspec.json.encode(self._record))}
        if self._root_key is not None:
            files[ROOT_FILE] = _dump(self._root_key).encode()
        return files

    @property
    def root(self) -> str:
        """The root certificate in PEM."""
        return self._record.root_certificate

    @property
    def issuer(self) -> str:
        """The issuing certificate in PEM."""
        return self._record.issuer_certificate

    @property
    def pin(self) -> bytes:
        """SHA-256 of the root's public key info."""
        return certificates.pin(self._root)

    @property
    def operator_token(self) -> str:
        """The NATS operator's token."""
        return self._record.operator_token

    def replace_issuer(self, now: float) -> Self:
        """The same network with a new issuing key; certificates of the old one stay good until they run out.

        Raises `forbidden` where the root key is not held.
        """
        if self._root_key is None:
            raise FelloeError("forbidden", "the network's root key is not on this machine")
        key = Ed25519PrivateKey.generate()
        issuer = certificates.make_issuer(self._root_key, self._root, key.public_key(), now)
        record = msgspec.structs.replace(self._record, issuer=_dump(key), issuer_certificate=certificates.pem(issuer))
        return type(self)(record, self._root_key)

    def account_tokens(self, now: float, revoked: Mapping[bytes, float]) -> dict[str, str]:
        """The token of each NATS account by its public nkey.

        `revoked` maps a raw node key to when it was revoked (Unix seconds); what was issued until then is refused.
        """
        revocations = {nats_jwt.public_name("user", key): int(when) for key, when in revoked.items()}
        application = nats_jwt.account_token(
            self._operator_key,
            account=self.application_account,
            name="felloe",
            scopes=[
                self._scope("spoke", self._users["spoke"], permissions.spoke_template()),
                self._scope("hub", self._users["hub"], permissions.hub_template()),
            ],
            issued_at=int(now),
            jetstream=True,
            revoked=revocations,
        )
        system_template = permissions.system_template(self.application_account)
        system = nats_jwt.account_token(
            self._operator_key,
            account=self.system_account,
            name="system",
            scopes=[self._scope("system", self._system_users, system_template)],
            issued_at=int(now),
            jetstream=False,
            revoked=revocations,
        )
        return {self.application_account: application, self.system_account: system}

    def issue(
        self,
        public_key: bytes,
        role: Role,
        now: float,
        *,
        addresses: Sequence[str] = (),
        seconds: int = CREDENTIAL_SECONDS,
    ) -> Credential:
        """A credential for a node key (raw 32 bytes) that lasts `seconds`; `addresses` only matter for hubs."""
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
                issued_at=issued_at,
                expires_at=expires_at,
            )

        return Credential(
            certificate=certificates.pem(certificate, self._issuer),
            user_token=token(self._users[role], self.application_account),
            system_token=token(self._system_users, self.system_account) if role == "hub" else "",
            issued_at=issued_at,
            expires_at=expires_at,
        )

    @staticmethod
    def _scope(role: str, key: Ed25519PrivateKey, template: permissions.Template) -> nats_jwt.Scope:
        return nats_jwt.Scope(role, _account(key), template)


def _raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def _account(key: Ed25519PrivateKey) -> str:
    return nats_jwt.public_name("account", _raw(key))


def _dump(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.private_bytes_raw()).decode()


def _load(text: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(base64.b64decode(text, validate=True))
