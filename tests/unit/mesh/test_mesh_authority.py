"""The network's keys: kept, replaced, and never mixed with another network's."""

import time
from base64 import b64encode
from random import Random

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId, id_from_public_key
from felloe.mesh import nats_jwt, permissions
from felloe.mesh.authority import AUTHORITY_FILE, ROOT_FILE, NetworkAuthority
from felloe.mesh.certificates import check_node_chain, check_root, key_of_request, make_request, pem, read_chain
from felloe.mesh.credentials import Credential
from felloe.mesh.failure_limiter import FailureLimiter
from felloe.mesh.membership import MemberList

NOW = time.time()
KEY = Ed25519PrivateKey.generate()
RAW = KEY.public_key().public_bytes_raw()


def check(credential: Credential, root: str, *, role: str = "spoke", now: float = NOW) -> float:
    return check_node_chain(credential.certificate, root, key=KEY.public_key(), role=role, now=now)


def test_it_comes_back_from_its_files() -> None:
    authority = NetworkAuthority.create(NOW)
    again = NetworkAuthority.from_files(authority.to_files())
    assert (again.network, again.root, again.issuer, again.pin) == (
        authority.network,
        authority.root,
        authority.issuer,
        authority.pin,
    )
    assert (again.operator_token, again.application_account) == (
        authority.operator_token,
        authority.application_account,
    )
    assert check(again.issue(RAW, "spoke", NOW), authority.root)


def test_the_network_id_is_the_root_keys() -> None:
    authority = NetworkAuthority.create(NOW)
    (root,) = read_chain(authority.root)
    assert authority.network == id_from_public_key(root.public_key().public_bytes_raw())
    assert check_root(root, authority.pin) == authority.network


def test_the_root_key_may_be_offline_and_is_needed_only_to_replace_the_issuer() -> None:
    files = NetworkAuthority.create(NOW).to_files()
    online = NetworkAuthority.from_files({AUTHORITY_FILE: files[AUTHORITY_FILE]})
    assert online.to_files().keys() == {AUTHORITY_FILE}
    assert files[ROOT_FILE] not in files[AUTHORITY_FILE]
    assert check(online.issue(RAW, "spoke", NOW), online.root)
    assert online.account_tokens(NOW, {})
    with pytest.raises(FelloeError, match="root key"):
        online.replace_issuer(NOW)


def test_a_new_issuer_serves_the_same_network_and_old_certificates_stay_good() -> None:
    old = NetworkAuthority.create(NOW)
    before = old.issue(RAW, "spoke", NOW)
    new = old.replace_issuer(NOW)
    assert (new.network, new.root) == (old.network, old.root)
    assert new.issuer != old.issuer
    assert check(before, new.root)
    assert check(new.issue(RAW, "spoke", NOW), old.root)


@pytest.mark.parametrize("name", [AUTHORITY_FILE, ROOT_FILE])
@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"\xff", b"AAAA"])
def test_a_damaged_file_is_named(name: str, content: bytes) -> None:
    files = NetworkAuthority.create(NOW).to_files() | {name: content}
    with pytest.raises(FelloeError, match=name) as caught:
        NetworkAuthority.from_files(files)
    assert caught.value.code == "bad_state"


def test_files_of_two_networks_do_not_mix() -> None:
    one, other = (NetworkAuthority.create(NOW).to_files() for _ in range(2))
    with pytest.raises(FelloeError, match="does not belong"):
        NetworkAuthority.from_files(one | {ROOT_FILE: other[ROOT_FILE]})


def test_a_credential_is_refused_for_another_key_role_network_or_time() -> None:
    authority, other = NetworkAuthority.create(NOW), NetworkAuthority.create(NOW)
    credential = authority.issue(RAW, "spoke", NOW)
    assert check(credential, authority.root) == credential.expires_at
    stranger = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    for bad, root, role, now in (
        (authority.issue(stranger, "spoke", NOW), authority.root, "spoke", NOW),
        (credential, authority.root, "hub", NOW),
        (credential, other.root, "spoke", NOW),
        (credential, authority.root, "spoke", NOW + 25 * 3600),
        (credential, authority.root, "spoke", NOW - 3600),
    ):
        with pytest.raises(FelloeError) as caught:
            check(bad, root, role=role, now=now)
        assert caught.value.code == "bad_state"


def test_a_member_cannot_issue_certificates_with_its_own() -> None:
    authority = NetworkAuthority.create(NOW)
    member = Ed25519PrivateKey.generate()
    own = read_chain(authority.issue(member.public_key().public_bytes_raw(), "hub", NOW).certificate)[0]
    names = read_chain(authority.issue(RAW, "hub", NOW).certificate)[0].extensions
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(own.subject)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(own.not_valid_before_utc)
        .not_valid_after(own.not_valid_after_utc)
        .add_extension(names.get_extension_for_class(x509.SubjectAlternativeName).value, critical=False)
        .sign(member, None)
    )
    for chain in ([forged, own], [forged, own, read_chain(authority.issuer)[0]], [forged]):
        credential = Credential(certificate=pem(*chain), user_token="", issued_at=0, expires_at=1)
        with pytest.raises(FelloeError):
            check(credential, authority.root, role="hub")


def test_only_a_hub_gets_addresses_and_the_hub_name() -> None:
    authority = NetworkAuthority.create(NOW)

    def names(role: str) -> list[str]:
        leaf = read_chain(authority.issue(RAW, role, NOW, addresses=["hub.local", "10.0.0.1", "::1"]).certificate)[0]
        listed = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        addresses = [str(one) for one in listed.get_values_for_type(x509.IPAddress)]
        return [*listed.get_values_for_type(x509.DNSName), *addresses]

    own = f"{id_from_public_key(RAW)}.{authority.network}.felloe.internal"
    assert names("hub") == [own, f"hub.{authority.network}.felloe.internal", "hub.local", "10.0.0.1", "::1"]
    assert names("spoke") == [own]


def test_a_request_proves_its_key() -> None:
    assert key_of_request(make_request(KEY)) == KEY.public_key()
    for wrong in ("", "x", make_request(KEY)[:-60], "\ud800", "-----BEGIN CERTIFICATE REQUEST-----\n" + "A" * 20000):
        with pytest.raises(FelloeError) as caught:
            key_of_request(wrong)
        assert caught.value.code == "invalid_value"


def damaged(der: bytes, random: Random) -> bytes:
    """The same bytes with one to three of them changed, lost or added."""
    changed = bytearray(der)
    for _ in range(random.randint(1, 3)):
        place = random.randrange(len(changed))
        changed[place : place + random.randint(0, 1)] = random.randbytes(random.randint(0, 1))
    return bytes(changed)


def in_pem(der: bytes, label: str) -> str:
    return f"-----BEGIN {label}-----\n{b64encode(der).decode()}\n-----END {label}-----\n"


def test_damaged_requests_and_certificates_fail_in_no_other_way_than_refusal() -> None:
    random = Random(8471)
    authority = NetworkAuthority.create(NOW)
    request = x509.load_pem_x509_csr(make_request(KEY).encode()).public_bytes(Encoding.DER)
    chain = [one.public_bytes(Encoding.DER) for one in read_chain(authority.issue(RAW, "hub", NOW).certificate)]
    root = read_chain(authority.root)[0].public_bytes(Encoding.DER)
    for number in range(3000):
        parts = [request, *chain, root]
        parts[number % 4] = damaged(parts[number % 4], random)
        asked, leaf, issuer, trusted = parts
        if parts == [request, *chain, root]:
            continue
        with pytest.raises(FelloeError):
            key_of_request(in_pem(asked, "CERTIFICATE REQUEST"))
            check_root(read_chain(in_pem(trusted, "CERTIFICATE"))[0], authority.pin)
            credential = Credential(
                certificate=in_pem(leaf, "CERTIFICATE") + in_pem(issuer, "CERTIFICATE"),
                user_token="",
                issued_at=0,
                expires_at=1,
            )
            check(credential, in_pem(trusted, "CERTIFICATE"), role="hub")


def test_nkeys_are_checked() -> None:
    name = nats_jwt.public_name("user", RAW)
    assert (len(name), name[0]) == (56, "U")
    assert nats_jwt.raw_public_key("user", name) == RAW
    assert nats_jwt.node_of_user(name) == id_from_public_key(RAW)
    flipped = name[:20] + ("A" if name[20] != "A" else "B") + name[21:]
    for wrong in (flipped, name[:-1], name.lower(), "", nats_jwt.public_name("account", RAW)):
        with pytest.raises(ValueError, match=r".+"):
            nats_jwt.raw_public_key("user", wrong)


def test_a_token_is_read_only_whole_and_unchanged() -> None:
    credential = NetworkAuthority.create(NOW).issue(RAW, "spoke", NOW)
    token = credential.user_token
    claims = nats_jwt.read_token(token)
    assert (claims.subject, claims.name) == (nats_jwt.public_name("user", RAW), id_from_public_key(RAW))
    assert (claims.issued_at, claims.expires_at) == (credential.issued_at, credential.expires_at)
    header, body, signature = token.split(".")
    other = NetworkAuthority.create(NOW).issue(RAW, "hub", NOW).user_token.split(".")
    for wrong in ("", "a.b", token[:-4], f"{header}.{other[1]}.{signature}", f"{header}.{body}.", "." * 5, "é.é.é"):
        with pytest.raises(FelloeError) as caught:
            nats_jwt.read_token(wrong)
        assert caught.value.code == "bad_state"


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "roster.gone.x",
        "_INBOX.abc",
        "_INBOX_",
        "_INBOX_" + "a" * 26,
        "_INBOX_" + "a" * 26 + ".",
        "_INBOX_" + "a" * 26 + ".>",
        "_INBOX_" + "a" * 26 + ".x y",
        "_INBOX_" + "A" * 26 + ".x",
        "node." + "a" * 26 + ".infer",
    ],
)
def test_a_reply_goes_to_inboxes_only(subject: str) -> None:
    assert permissions.inbox_owner(subject) is None


def test_the_owner_of_an_inbox_is_found() -> None:
    node = NodeId("a" * 26)
    assert permissions.inbox_owner(permissions.inbox(node) + ".stream.1") == node


@pytest.mark.parametrize("name", ["", "a.b", "*", ">", "a b", "A", "x" * 65])
def test_a_subject_has_plain_parts(name: str) -> None:
    for spell in (permissions.hub_service, permissions.state):
        with pytest.raises(ValueError, match="subject"):
            spell(name)


def test_members_are_kept_removed_for_good_and_bounded() -> None:
    stored: list[bytes] = []
    members = MemberList(stored.append)
    first = members.add(RAW, "shed", "spoke", NOW)
    assert members.add(RAW, "barn", "spoke", NOW + 5).joined_at == NOW
    assert members.revocations(NOW) == {}
    members.revoke(first.id, NOW + 10)
    again = MemberList(stored.append, stored=stored[-1])
    assert again.is_revoked(first.id)
    assert again.revocations(NOW + 20) == {RAW: NOW + 10}
    assert again.revocations(NOW + 49 * 3600) == {}, "no token can be that old"
    with pytest.raises(FelloeError, match="removed"):
        again.add(RAW, "shed", "spoke", NOW + 20)
    with pytest.raises(FelloeError, match="not_found"):
        again.revoke(NodeId("b" * 26), NOW)
    with pytest.raises(FelloeError, match="damaged"):
        MemberList(stored.append, stored=b"{")


def test_an_address_waits_after_many_failures_and_its_neighbours_do_not() -> None:
    limiter = FailureLimiter(failures=3, window=60, addresses=10)
    for second in range(3):
        assert limiter.wait("10.0.0.1", second) == 0
        limiter.note_failure("10.0.0.1", second)
    assert limiter.wait("10.0.0.1", 3) == 57
    assert limiter.wait("::ffff:10.0.0.1", 3) == 57
    assert limiter.wait("10.0.0.2", 3) == 0
    assert limiter.wait("10.0.0.1", 60) == 0
    limiter.note_failure("10.0.0.1", 61)
    assert limiter.wait("10.0.0.1", 61) == 0


def test_one_machines_many_ipv6_addresses_count_as_one_and_memory_is_bounded() -> None:
    limiter = FailureLimiter(failures=3, window=60, addresses=10)
    for number in range(3):
        limiter.note_failure(f"fd00:1:2:3::{number:x}", 0)
    assert limiter.wait("fd00:1:2:3:ffff::1", 1) == 59
    assert limiter.wait("fd00:1:2:4::1", 1) == 0
    for number in range(1000):
        limiter.note_failure(f"10.0.{number // 256}.{number % 256}", 1)
    assert len(limiter._counts) == 10
