"""TLS between two members of a network: both show their certificate, and each knows which node the other one is.

The contexts follow this node's renewals and the network's trust list. A context can take up further issuers but not
forget one, so what a peer shows is also held against the list of the moment, at each request.
"""

import ssl
import time
from collections.abc import Callable
from pathlib import Path

from felloe.domain.ids import NodeId
from felloe.mesh.certificates import client_context, member_of_certificate, node_tls_name, server_context
from felloe.mesh.trust import Trust


class MemberTls:
    """This node's side of such connections. `certificate` and `key` are PEM files; `now` gives Unix seconds."""

    def __init__(
        self, certificate: Path, key: Path, trust: Callable[[], Trust], now: Callable[[], float] = time.time
    ) -> None:
        self._files = (certificate, key)
        self._trust = trust
        self._now = now
        self.generation = 0
        self.serving = server_context(certificate, key)
        self.serving.verify_mode = ssl.CERT_REQUIRED
        self.serving.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
        # A resumed session would skip the look at the certificate.
        self.serving.num_tickets = 0
        self._trust_issuers()

    def refresh(self) -> None:
        """Use what the files and the trust list hold now for new connections; `generation` tells clients of it."""
        self.serving.load_cert_chain(*self._files)
        self._trust_issuers()
        self.generation += 1

    def asking(self) -> ssl.SSLContext:
        """For dialling members; pass `server_name` of the wanted one as the server's name."""
        context = client_context(self._issuers())
        context.load_cert_chain(*self._files)
        return context

    def server_name(self, node: NodeId) -> str:
        """The name that holds a server to be `node` and no other."""
        return node_tls_name(self._trust().network, node)

    def member(self, certificate: bytes) -> NodeId:
        """The member whose certificate (DER) a client has shown; raises `wrong_network` where it counts no more."""
        return member_of_certificate(certificate, self._issuers(), network=self._trust().network, now=self._now())

    def _issuers(self) -> str:
        return self._trust().issuers(self._now())

    def _trust_issuers(self) -> None:
        self.serving.load_verify_locations(cadata=self._issuers())
