"""Certificate requests: how a node proves that it holds the key which it wants certified."""

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from felloe.domain.errors import FelloeError

_LARGEST_PEM = 16384
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)


def make_request(key: Ed25519PrivateKey) -> str:
    """A certificate request in PEM: it proves that whoever sends it holds `key`, and asks for no names."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, None)
    return request.public_bytes(Encoding.PEM).decode()


def key_of_request(request: str) -> Ed25519PublicKey:
    """The key that a certificate request proves to hold; every name in it is ignored.

    Raises `invalid_value` when it is no request, its key is not Ed25519, or the proof does not fit.
    """
    try:
        if len(request) > _LARGEST_PEM:
            raise ValueError("too long")
        parsed = x509.load_pem_x509_csr(request.encode())
        key = parsed.public_key()
        proven = parsed.is_signature_valid
    except _UNREADABLE as error:
        raise FelloeError("invalid_value", "the certificate request cannot be read", param="request") from error
    if not isinstance(key, Ed25519PublicKey) or not proven:
        raise FelloeError(
            "invalid_value", "the certificate request does not prove that its Ed25519 key is held", param="request"
        )
    return key
