"""The network's root key: it signs issuing certificates and trust lists, and lies offline in between.

Exported, it is an encrypted PKCS#8 file (RFC 5958, RFC 8018) that openssl reads, with the root's certificate beneath.
`cryptography` writes such files with 2,048 rounds of PBKDF2, which a stolen file would not withstand; so the file is
put together here, with scrypt (RFC 7914) at the most memory that openssl allows.
"""

import base64
import re
import secrets
from typing import Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NetworkId, id_from_public_key
from felloe.mesh import certificates

SHORTEST_PASSPHRASE = 10
_LONGEST_PASSPHRASE = 1024
_LARGEST_FILE = 16 << 10
_SUBJECT = re.compile(r"Felloe network ([a-z2-7]{26})")
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 1 << 14, 8, 5
_SALT_BYTES = 16
_SECRET_BYTES = 64  # 48 of an Ed25519 key, padded
_BEGIN, _END = b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"-----END ENCRYPTED PRIVATE KEY-----"

# Object identifiers as DER.
_PBES2 = bytes.fromhex("06092a864886f70d01050d")
_SCRYPT = bytes.fromhex("06092b06010401da47040b")
_AES_256_CBC = bytes.fromhex("060960864801650304012a")
_INTEGER, _OCTETS, _SEQUENCE = 0x02, 0x04, 0x30


class RootKey:
    """A root's key and certificate. `network` is the id of the network's first root, which this may not be."""

    def __init__(self, key: Ed25519PrivateKey, certificate: x509.Certificate, network: NetworkId) -> None:
        if certificates.check_root(certificate, network) != key.public_key():
            raise FelloeError("wrong_network", "the root's key and its certificate do not belong together")
        self._key = key
        self._certificate = certificate
        self.network = network
        self.pin = certificates.pin(certificate)

    @classmethod
    def create(cls, now: float, network: NetworkId | None = None) -> Self:
        """A new root: of a new network, or of the given one. `now` in Unix seconds."""
        key = Ed25519PrivateKey.generate()
        name = network or NetworkId(id_from_public_key(key.public_key().public_bytes_raw()))
        return cls(key, certificates.make_root(key, name, now), name)

    @property
    def certificate(self) -> str:
        """Its certificate in PEM."""
        return certificates.pem(self._certificate)

    def sign(self, statement: bytes) -> bytes:
        """The raw signature over a trust list."""
        return self._key.sign(statement)

    def issue(self, key: Ed25519PublicKey, now: float) -> x509.Certificate:
        """A certificate that lets `key` issue node certificates."""
        return certificates.make_issuer(self._key, self._certificate, key, now)

    def to_bytes(self) -> bytes:
        """Key and certificate in PEM, not encrypted: for this program's own private folder."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + self.certificate.encode()

    def export(self, passphrase: str) -> bytes:
        """Key and certificate in PEM, the key encrypted. Takes half a second. Raises `invalid_value`."""
        if not SHORTEST_PASSPHRASE <= len(passphrase) <= _LONGEST_PASSPHRASE:
            detail = f"a passphrase has {SHORTEST_PASSPHRASE} to {_LONGEST_PASSPHRASE} characters"
            raise FelloeError("invalid_value", detail, param="passphrase")
        plain = self._key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        return _in_pem(_encrypt(plain, passphrase.encode())) + self.certificate.encode()

    @classmethod
    def load(cls, data: bytes, passphrase: str | None = None) -> Self:
        """What `export` gave, or without a passphrase what `to_bytes` gave.

        Raises `bad_passphrase`, or `bad_state` when the file is damaged or is none of these.
        """
        (certificate,), network = _read_certificate(data)
        try:
            key = load_pem_private_key(data, None if passphrase is None else passphrase.encode())
        except TypeError as error:
            wanted = "is not encrypted" if passphrase else "is encrypted and needs its passphrase"
            raise FelloeError("bad_passphrase", f"the root's key {wanted}") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            # One wrong passphrase in 256 makes something that only looks decrypted; the shell tells it from damage.
            if passphrase is not None and ("password" in str(error).lower() or _has_whole_shell(data)):
                raise FelloeError("bad_passphrase", "the passphrase does not open the root's key") from error
            raise FelloeError("bad_state", "the root's key is damaged") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise FelloeError("bad_state", "the root's key is not of the kind Ed25519")
        try:
            return cls(key, certificate, network)
        except FelloeError as error:
            raise FelloeError("bad_state", error.detail) from error


def _read_certificate(data: bytes) -> tuple[list[x509.Certificate], NetworkId]:
    if len(data) > _LARGEST_FILE:
        raise FelloeError("bad_state", "this is too large for a network's root")
    try:
        found = certificates.read_chain(data.decode())
    except (FelloeError, UnicodeDecodeError) as error:
        raise FelloeError("bad_state", "this is no network's root: it holds no certificate") from error
    named = _SUBJECT.search(found[0].subject.rfc4514_string())
    if named is None or len(found) != 1:
        raise FelloeError("bad_state", "this is no network's root: its certificate is of another kind")
    return found, NetworkId(named[1])


def _encrypt(plain: bytes, passphrase: bytes) -> bytes:
    """An EncryptedPrivateKeyInfo: PBES2 with scrypt and AES-256-CBC."""
    salt, vector = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(16)
    key = Scrypt(salt, 32, _SCRYPT_N, _SCRYPT_R, _SCRYPT_P).derive(passphrase)
    encryptor = Cipher(AES(key), CBC(vector)).encryptor()
    padding = 16 - len(plain) % 16
    return _shell(salt, vector, encryptor.update(plain + bytes([padding]) * padding) + encryptor.finalize())


def _shell(salt: bytes, vector: bytes, secret: bytes) -> bytes:
    numbers = [_number(number) for number in (_SCRYPT_N, _SCRYPT_R, _SCRYPT_P)]
    derivation = _der(_SEQUENCE, _SCRYPT, _der(_SEQUENCE, _der(_OCTETS, salt), *numbers))
    encryption = _der(_SEQUENCE, _AES_256_CBC, _der(_OCTETS, vector))
    scheme = _der(_SEQUENCE, _PBES2, _der(_SEQUENCE, derivation, encryption))
    return _der(_SEQUENCE, scheme, _der(_OCTETS, secret))


def _has_whole_shell(data: bytes) -> bool:
    """Whether all around the salt, the vector and the secret is as `export` wrote it."""
    parts = (b"s" * _SALT_BYTES, b"v" * 16, b"k" * _SECRET_BYTES)
    shell = _shell(*parts)
    body = data.partition(_BEGIN)[2].partition(_END)[0]
    try:
        der = base64.b64decode(b"".join(body.split()), validate=True)
    except ValueError:
        return False
    found = [der[shell.index(part) :][: len(part)] for part in parts]
    return len(der) == len(shell) and _shell(*found) == der


def _der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    length = len(content)
    size = bytes([length]) if length < 0x80 else bytes([0x81, length])
    return bytes([tag]) + size + content


def _number(value: int) -> bytes:
    return _der(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _in_pem(der: bytes) -> bytes:
    text = base64.b64encode(der).decode()
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join([_BEGIN.decode(), *lines, _END.decode(), ""]).encode()
