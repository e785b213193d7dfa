"""Who this node is in its network: membership, credential and trust list, and on a hub the network's signing keys."""

import logging
import ssl
import time
from collections.abc import Callable
from functools import partial

import msgspec

from felloe import __version__
from felloe.domain.errors import FelloeError
from felloe.domain.roster import Endpoints
from felloe.hubs.addresses import peer_addresses
from felloe.mesh.authority import NetworkAuthority
from felloe.mesh.certificates import client_context
from felloe.mesh.credentials import Credential, CredentialKeeper, sign_nonce
from felloe.mesh.join_client import renew
from felloe.mesh.membership import Membership
from felloe.mesh.session import Login
from felloe.mesh.trust import Trust, newer
from felloe.node.founding import raw_public_key
from felloe.node.network_files import NetworkFiles

logger = logging.getLogger(__name__)


class Identity:
    """Owns these files' contents in memory, and keeps them up to date. `where` is how this node can be dialled.

    Raises `bad_state` when one of them is missing.
    """

    def __init__(self, files: NetworkFiles, membership: Membership, where: Endpoints) -> None:
        credential, trust = files.credential(), files.trust()
        if credential is None or trust is None:
            raise FelloeError("bad_state", "this node is a member, but its credential or trust list is not in its home")
        self.files = files
        self.membership = membership
        self.trust: Trust = trust
        self.authority: NetworkAuthority | None = files.authority()
        if membership.role == "hub" and self.authority is None:
            raise FelloeError("bad_state", "this node is a hub, but the network's signing keys are not in its home")
        self.node_key = files.node_key()
        self.public_key = raw_public_key(self.node_key)
        self.keeper = CredentialKeeper(credential, renew=self._renew, save=files.save_credential, now=time.time)
        self._hosts = where.hosts
        self._own_peers = peer_addresses(where)
        self._asks_others = False
        self._was_refused = False
        self._trust_callbacks: list[Callable[[], None]] = []

    def tls(self) -> ssl.SSLContext:
        """Trusts what the trust list names now; for one dial."""
        return client_context(self.trust.issuers(time.time()))

    def user_login(self) -> Login:
        """How this node logs in to the application account, with the newest credential."""
        return Login(self.keeper.current.user_token, partial(sign_nonce, self.node_key))

    def system_login(self) -> Login:
        """How a hub logs in to the system account."""
        return Login(self.keeper.current.system_token, partial(sign_nonce, self.node_key))

    def on_trust(self, callback: Callable[[], None]) -> None:
        """Call `callback` after the trust list was replaced."""
        self._trust_callbacks.append(callback)

    def take_trust(self, offered: bytes) -> None:
        """Believe a newer trust list that a trusted root has signed; one that is refused is only logged."""
        try:
            trust = newer(offered, self.trust)
        except FelloeError as error:
            logger.error("a trust list was refused: %s", error)
            return
        if trust != self.trust:
            self.files.save_trust(trust)
            self._set_trust(trust)

    def take_keys(self, authority: NetworkAuthority, trust: Trust) -> None:
        """Use the network's new signing keys, which are stored already."""
        self.authority = authority
        self._set_trust(trust)

    def knows_hubs(self, peers: tuple[str, ...], urls: tuple[str, ...]) -> None:
        """Where the hubs are now; kept for the next start."""
        membership = msgspec.structs.replace(self.membership, nats_urls=urls, hubs=peers)
        if peers and membership != self.membership:
            self.files.save_membership(membership)
            self.membership = membership

    def note_refused(self) -> None:
        """A hub does not let this node in: renew soon, and be a hub only if another one says that this still is one."""
        self._was_refused = True
        self.keeper.note_refused()

    def cease_as_hub(self) -> None:
        """Be a spoke at the next start too, and issue nothing any more; the credential is renewed after that."""
        membership = msgspec.structs.replace(self.membership, role="spoke")
        self.files.save_membership(membership)
        self.membership, self.authority = membership, None
        self.files.forget_authority()

    async def ask_others(self) -> Credential:
        """Renew at another hub, whatever this node is: it tells the role that the owner gave this node by now.

        Raises as `renew`.
        """
        self._asks_others = True
        try:
            return await self.keeper.renew_now()
        finally:
            self._asks_others = False

    async def _renew(self) -> Credential:
        own = self._own_authority()
        if own is None:
            return await self._renew_at_others()
        if self._was_refused:
            self._was_refused = False
            try:
                return await self._renew_at_others()
            except FelloeError as error:
                own = self._own_authority()
                if error.code == "forbidden" or own is None:
                    raise
                logger.info("no other hub renews this one's credential: %s", error)
        return self._issue(own)

    def _own_authority(self) -> NetworkAuthority | None:
        """What this node issues its own credential with: as a hub, unless others are to say whether it is one."""
        return self.authority if self.membership.role == "hub" and not self._asks_others else None

    def _issue(self, authority: NetworkAuthority) -> Credential:
        return authority.issue(self.public_key, "hub", time.time(), addresses=self._hosts)

    async def _renew_at_others(self) -> Credential:
        welcomed = await renew(
            self._others(), self.trust, self.node_key, version=__version__, addresses=self._hosts, now=time.time
        )
        known = self.authority
        # A hub that is behind may hand out the keys from before they were replaced, and what they signed.
        newer_known = (
            known is not None and welcomed.authority is not None and welcomed.authority.version < known.version
        )
        if welcomed.authority is not None and not newer_known:
            self.files.save_authority(welcomed.authority, welcomed.trust)
            self.authority = welcomed.authority
        if welcomed.trust != self.trust:
            self.files.save_trust(welcomed.trust)
            self._set_trust(welcomed.trust)
        if welcomed.membership != self.membership:
            self.files.save_membership(welcomed.membership)
            self.membership = welcomed.membership
        if self.membership.role != "hub" and self.authority is not None:
            self.authority = None
            self.files.forget_authority()
        return self._issue(known) if known is not None and newer_known else welcomed.credential

    def _others(self) -> Membership:
        """What this node knows of its network, without itself among the hubs."""
        others = tuple(peer for peer in self.membership.hubs if peer not in self._own_peers)
        return msgspec.structs.replace(self.membership, hubs=others)

    def _set_trust(self, trust: Trust) -> None:
        self.trust = trust
        for callback in self._trust_callbacks:
            callback()
