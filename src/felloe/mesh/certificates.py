"""The network's X.509 certificates: what they say, and the TLS contexts that trust them and nothing else.

A root signs issuing certificates, which sign short-lived node certificates. TLS trusts the issuing certificates that
the network's trust list names, and not whatever else a root has ever signed. Every node certificate names the node and
its role in URI names (`spiffe://<network>/node/<id>`, `spiffe://<network>/role/<role>`), and also in DNS names
below `felloe.internal`, because those are what TLS clients check: a hub may be dialled at any address, and is still
held to `hub.<network>.felloe.internal`, a name that only hubs are given.
"""

import datetime
import hashlib
import ipaddress
import ssl
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NetworkId, NodeId, id_from_public_key
from felloe.domain.roster import Role

CLOCK_TOLERANCE = 600.0
"""Seconds by which a certificate is valid before it is issued, because clocks differ."""

_ROOT_DAYS = 20 * 365
_ISSUER_DAYS = 5 * 365
_LARGEST_PEM = 16384
_MOST_CERTIFICATES = 8
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)


def hub_tls_name(network: NetworkId) -> str:
    """The DNS name that TLS clients expect of a hub, whatever address they dial."""
    return f"hub.{network}.felloe.internal"


def node_tls_name(network: NetworkId, node: NodeId) -> str:
    """The DNS name that TLS clients expect of one node."""
    return f"{node}.{network}.felloe.internal"


def node_uri(network: NetworkId, node: NodeId) -> str:
    """The URI name of a node."""
    return f"spiffe://{network}/node/{node}"


def role_uri(network: NetworkId, role: Role) -> str:
    """The URI name of a role."""
    return f"spiffe://{network}/role/{role}"


def pin(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the certificate's subject public key info: what a join token carries."""
    key = certificate.public_key()
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def pem(*certificates: x509.Certificate) -> str:
    """The certificates in PEM, one after the other."""
    return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in certificates)


def make_root(key: Ed25519PrivateKey, network: NetworkId, now: float) -> x509.Certificate:
    """A self-signed root of a network, whose id is the first root's for ever."""
    name = _root_name(network)
    return _authority(key, name, key.public_key(), name, now, days=_ROOT_DAYS, path_length=1)


def make_issuer(
    root_key: Ed25519PrivateKey, root: x509.Certificate, key: Ed25519PublicKey, now: float
) -> x509.Certificate:
    """A certificate that lets `key` issue node certificates, so that the root may go offline."""
    name = _name(f"Felloe issuer {id_from_public_key(key.public_bytes_raw())}")
    return _authority(root_key, root.subject, key, name, now, days=_ISSUER_DAYS, path_length=0)


def _authority(
    signer: Ed25519PrivateKey,
    issuer: x509.Name,
    key: Ed25519PublicKey,
    subject: x509.Name,
    now: float,
    *,
    days: int,
    path_length: int,
) -> x509.Certificate:
    start = _time(now)
    return (
        _builder(signer, issuer, key, subject)
        .not_valid_before(start - datetime.timedelta(seconds=CLOCK_TOLERANCE))
        .not_valid_after(start + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .sign(signer, None)
    )


def make_node_certificate(
    issuer_key: Ed25519PrivateKey,
    issuer: x509.Certificate,
    key: Ed25519PublicKey,
    *,
    network: NetworkId,
    role: Role,
    now: float,
    expires_at: float,
    addresses: Sequence[str] = (),
) -> x509.Certificate:
    """A node's certificate; the key alone decides the node's id.

    Every node may show it as a client and as a server: nodes fetch models from each other. What makes a hub is the
    hubs' name. `addresses` are host names and IP addresses that a hub is also known by.
    """
    node = NodeId(id_from_public_key(key.public_bytes_raw()))
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(node_uri(network, node)),
        x509.UniformResourceIdentifier(role_uri(network, role)),
        x509.DNSName(node_tls_name(network, node)),
    ]
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    if role == "hub":
        names += [x509.DNSName(hub_tls_name(network)), *map(_address_name, addresses)]
    return (
        _builder(issuer_key, issuer.subject, key, _name(node))
        .not_valid_before(_time(now - CLOCK_TOLERANCE))
        .not_valid_after(_time(expires_at))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .sign(issuer_key, None)
    )


def _builder(
    signer: Ed25519PrivateKey, issuer: x509.Name, key: Ed25519PublicKey, subject: x509.Name
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _root_name(network: NetworkId) -> x509.Name:
    return _name(f"Felloe network {network}")


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)


def _address_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        pass
    try:
        return x509.DNSName(address.encode("idna").decode())
    except ValueError as error:
        raise FelloeError("bad_config", f"{address!r} is neither a host name nor an IP address") from error


def read_chain(chain: str) -> list[x509.Certificate]:
    """The certificates of a PEM text, one to eight; raises `bad_state` when it is none."""
    try:
        if len(chain) > _LARGEST_PEM:
            raise ValueError("too long")
        certificates = x509.load_pem_x509_certificates(chain.encode())
    except _UNREADABLE as error:
        raise FelloeError("bad_state", "a certificate cannot be read") from error
    if len(certificates) > _MOST_CERTIFICATES:
        raise FelloeError("bad_state", "a certificate chain is too long")
    return certificates


def _key_of(certificate: x509.Certificate) -> Ed25519PublicKey | None:
    """The certificate's key, or None when it is of another kind than this program uses."""
    try:
        key = certificate.public_key()
    except _UNREADABLE:
        return None
    return key if isinstance(key, Ed25519PublicKey) else None


def check_root(root: x509.Certificate, network: NetworkId) -> Ed25519PublicKey:
    """The key of a root of this network; raises `wrong_network` when it names another one or is forged."""
    key = _key_of(root)
    try:
        if key is None or root.subject != _root_name(network):
            raise FelloeError("wrong_network", "a root certificate is not of this network")
        root.verify_directly_issued_by(root)
    except (*_UNREADABLE, InvalidSignature) as error:
        raise FelloeError("wrong_network", "a root certificate is forged") from error
    return key


def check_issuer(issuer: x509.Certificate, roots: Sequence[x509.Certificate]) -> None:
    """Raises `wrong_network` unless one of these roots lets the certificate issue."""
    if not any(_issues(root, issuer) for root in roots) or not _may_issue(issuer):
        raise FelloeError("wrong_network", "an issuing certificate is not signed by the network's root")


def _issues(issuer: x509.Certificate, issued: x509.Certificate) -> bool:
    try:
        issued.verify_directly_issued_by(issuer)
    except (*_UNREADABLE, InvalidSignature):
        return False
    return True


def _may_issue(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (*_UNREADABLE, x509.ExtensionNotFound, x509.DuplicateExtension):
        return False


def check_node_chain(
    chain: str, issuers: str, *, network: NetworkId, key: Ed25519PublicKey, role: Role, now: float
) -> float:
    """When a node's own new certificate expires (Unix seconds), after checking that it is what was asked for.

    It must certify `key`, name its node and `role` in `network`, and be signed by one of `issuers` (PEM). Raises
    `bad_state`. (The X.509 verifier of `cryptography` follows the web's rules, which know no Ed25519.)
    """
    leaf = read_chain(chain)[0]
    if _key_of(leaf) != key:
        raise FelloeError("bad_state", "the certificate is for another key")
    issuer = next((one for one in read_chain(issuers) if _issues(one, leaf)), None)
    if issuer is None or not _may_issue(issuer):
        raise FelloeError("bad_state", "the certificate is signed by no issuer that the network trusts")
    if not all(one.not_valid_before_utc <= _time(now) < one.not_valid_after_utc for one in (leaf, issuer)):
        raise FelloeError("bad_state", "the certificate is not valid now; check this machine's clock")
    node = NodeId(id_from_public_key(key.public_bytes_raw()))
    if _uris(leaf) != {node_uri(network, node), role_uri(network, role)}:
        raise FelloeError("bad_state", "the certificate names another node or role")
    return leaf.not_valid_after_utc.timestamp()


def _uris(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (*_UNREADABLE, x509.ExtensionNotFound, x509.DuplicateExtension):
        return set()
    return set(names.get_values_for_type(x509.UniformResourceIdentifier))


def node_of_certificate(der: bytes) -> NodeId:
    """The node whose key a certificate (DER) is for, whatever names it bears; raises `wrong_network`."""
    try:
        key = _key_of(x509.load_der_x509_certificate(der))
    except _UNREADABLE:
        key = None
    if key is None:
        raise FelloeError("wrong_network", "what answers there does not have a node's key")
    return NodeId(id_from_public_key(key.public_bytes_raw()))


def member_of_certificate(der: bytes, issuers: str, *, network: NetworkId, now: float) -> NodeId:
    """The node of this network whom a certificate (DER) names, if one of `issuers` (PEM) issued it and both are valid.

    Raises `wrong_network`. TLS has looked at the same when the connection began; the list of issuers may have changed
    since then.
    """
    node = node_of_certificate(der)
    leaf = x509.load_der_x509_certificate(der)
    issuer = next((one for one in read_chain(issuers) if _issues(one, leaf)), None)
    if issuer is None or node_uri(network, node) not in _uris(leaf):
        raise FelloeError("wrong_network", "the certificate is not of a node of this network")
    if not all(one.not_valid_before_utc <= _time(now) < one.not_valid_after_utc for one in (leaf, issuer)):
        raise FelloeError("wrong_network", "the certificate is not valid now; check the clocks of both machines")
    return node


def client_context(issuers: str) -> ssl.SSLContext:
    """TLS 1.3 that trusts these issuing certificates (PEM) alone, and not the roots above them.

    Pass `hub_tls_name(network)` as the server's name to insist on a hub. Make it anew for each dial: the list of
    issuers changes when the network's keys are replaced.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=issuers)
    return context


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.3 for a hub. Call `load_cert_chain` on it again after a renewal; new connections get the new one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    return context
