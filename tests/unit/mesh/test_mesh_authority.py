"""The keys that hubs share: kept, replaced, and never mixed with another network's."""

import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from random import Random

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId, id_from_public_key
from felloe.domain.roster import Role
from felloe.mesh import nats_jwt, permissions
from felloe.mesh.authority import NetworkAuthority
from felloe.mesh.certificate_requests import key_of_request, make_request
from felloe.mesh.certificates import check_node_chain, pem, read_chain
from felloe.mesh.credentials import Credential
from felloe.mesh.failure_limiter import FailureLimiter
from felloe.mesh.rotation import Keys, found, rotate, rotate_root

NOW = time.time()
KEY = Ed25519PrivateKey.generate()
RAW = KEY.public_key().public_bytes_raw()


def check(credential: Credential, keys: Keys, *, role: Role = "spoke", now: float = NOW) -> float:
    return check_node_chain(
        credential.certificate,
        keys.trust.issuers(now),
        network=keys.trust.network,
        key=KEY.public_key(),
        role=role,
        now=now,
    )


def scopes(keys: Keys, account: str, now: float) -> list[tuple[str, str]]:
    """Role and key of each signing key that an account's token names."""
    body = keys.authority.account_tokens(now, {})[account].split(".")[1]
    claims = msgspec.json.decode(b64decode(body + "=" * (-len(body) % 4), altchars=b"-_"))
    return [(one["role"], one["key"]) for one in claims["nats"]["signing_keys"]]


def test_it_comes_back_from_its_bytes_and_issues_the_same() -> None:
    keys = found(NOW)
    again = NetworkAuthority.from_bytes(keys.authority.to_bytes())
    for what in ("network", "version", "issuer", "operator_token", "application_account", "system_account"):
        assert getattr(again, what) == getattr(keys.authority, what)
    assert check(again.issue(RAW, "spoke", NOW), keys)
    assert again.to_bytes() == keys.authority.to_bytes()


def test_it_holds_no_root_key() -> None:
    keys = found(NOW)
    assert keys.root.certificate not in keys.authority.to_bytes().decode()
    raw = keys.root._key.private_bytes_raw()
    assert b64encode(raw) not in keys.authority.to_bytes()


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"\xff", b"AAAA", b"[" * 100_000])
def test_what_is_damaged_is_refused_without_quoting_it(content: bytes) -> None:
    good = found(NOW).authority.to_bytes()
    for wrong in (content, good[:-9], good.replace(b'"format":2', b'"format":1')):
        with pytest.raises(FelloeError) as caught:
            NetworkAuthority.from_bytes(wrong)
        assert caught.value.code == "bad_state"
        assert caught.value.__cause__ is None


def test_an_issuing_key_under_another_certificate_is_refused() -> None:
    one, other = (msgspec.json.decode(found(NOW).authority.to_bytes()) for _ in range(2))
    with pytest.raises(FelloeError, match="bad_state"):
        NetworkAuthority.from_bytes(msgspec.json.encode(one | {"issuer_certificate": other["issuer_certificate"]}))


def test_it_is_held_against_the_trust_list() -> None:
    first = found(NOW)
    second = rotate(first, NOW, 3600)
    first.authority.check(first.trust, NOW)
    second.authority.check(second.trust, NOW)
    first.authority.check(second.trust, NOW + 3500)
    for authority, trust, now in (
        (second.authority, first.trust, NOW),
        (first.authority, second.trust, NOW + 3601),
        (found(NOW).authority, first.trust, NOW),
    ):
        with pytest.raises(FelloeError) as caught:
            authority.check(trust, now)
        assert caught.value.code == "wrong_network"


@pytest.mark.parametrize("replace", [rotate, rotate_root])
def test_replaced_keys_keep_the_accounts_and_nothing_else(replace: Callable[[Keys, float, float], Keys]) -> None:
    first = found(NOW)
    second = replace(first, NOW, 0)
    before, after = (msgspec.json.decode(keys.authority.to_bytes()) for keys in (first, second))
    kept = {"format", "network", "system_account", "application_account", "former"}
    assert {name for name in before if before[name] == after[name]} == kept
    assert not set(before["users"].values()) & set(after["users"].values())
    assert (second.authority.version, second.trust.version) == (2, 2)


def test_old_users_are_believed_until_the_overlap_ends_and_the_account_names_them_no_longer() -> None:
    first = found(NOW)
    second = rotate(first, NOW, 3600)
    application, system = second.authority.application_account, second.authority.system_account
    old, new = (scopes(keys, application, NOW) for keys in (first, rotate(first, NOW, 0)))
    assert [role for role, _ in old] == [role for role, _ in new] == ["spoke", "hub"]
    assert not set(old) & set(new)
    assert set(old) < set(scopes(second, application, NOW + 3599))
    assert set(scopes(first, system, NOW)) < set(scopes(second, system, NOW + 3599))
    assert second.authority.next_end(NOW) == int(NOW + 3600)
    assert not set(old) & set(scopes(second, application, NOW + 3600))
    assert len(scopes(second, application, NOW + 3600)) == 2
    assert second.authority.next_end(NOW + 3600) is None
    again = NetworkAuthority.from_bytes(second.authority.to_bytes())
    assert again.account_tokens(NOW, {}).keys() == {application, system}
    third = rotate(second, NOW + 1, 0)
    assert len(scopes(third, application, NOW + 2)) == 2, "without an overlap all older ones go"


def test_old_certificates_stay_good_until_the_overlap_ends() -> None:
    first = found(NOW)
    before = first.authority.issue(RAW, "spoke", NOW)
    second = rotate(first, NOW, 3600)
    assert check(before, second, now=NOW + 3599)
    assert check(second.authority.issue(RAW, "spoke", NOW), second)
    for keys, now in ((second, NOW + 3600), (rotate(first, NOW, 0), NOW)):
        with pytest.raises(FelloeError, match="no issuer"):
            check(before, keys, now=now)


def test_an_account_may_store_nothing() -> None:
    for token in found(NOW).authority.account_tokens(NOW, {}).values():
        body = token.split(".")[1]
        limits = msgspec.json.decode(b64decode(body + "=" * (-len(body) % 4), altchars=b"-_"))["nats"]["limits"]
        assert not {"disk_storage", "mem_storage", "streams", "consumer"} & limits.keys()
    for template in (permissions.hub_template(), permissions.spoke_template()):
        assert not [one for one in (*template.publish, *template.subscribe) if one.startswith("$")]


def test_a_credential_is_refused_for_another_key_role_network_or_time() -> None:
    keys, other = found(NOW), found(NOW)
    credential = keys.authority.issue(RAW, "spoke", NOW)
    assert check(credential, keys) == credential.expires_at
    stranger = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    cases: list[tuple[Credential, Keys, Role, float]] = [
        (keys.authority.issue(stranger, "spoke", NOW), keys, "spoke", NOW),
        (credential, keys, "hub", NOW),
        (credential, other, "spoke", NOW),
        (credential, keys, "spoke", NOW + 25 * 3600),
        (credential, keys, "spoke", NOW - 3600),
    ]
    for bad, against, role, now in cases:
        with pytest.raises(FelloeError) as caught:
            check(bad, against, role=role, now=now)
        assert caught.value.code == "bad_state"


def test_a_member_cannot_issue_certificates_with_its_own() -> None:
    keys = found(NOW)
    authority = keys.authority
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
            check(credential, keys, role="hub")


def test_only_a_hub_gets_addresses_and_the_hub_name() -> None:
    authority = found(NOW).authority

    def names(role: Role) -> list[str]:
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
    keys = found(NOW)
    request = x509.load_pem_x509_csr(make_request(KEY).encode()).public_bytes(Encoding.DER)
    chain = [one.public_bytes(Encoding.DER) for one in read_chain(keys.authority.issue(RAW, "hub", NOW).certificate)]
    for number in range(3000):
        parts = [request, chain[0]]
        parts[number % 2] = damaged(parts[number % 2], random)
        asked, leaf = parts
        if parts == [request, chain[0]]:
            continue
        with pytest.raises(FelloeError):
            key_of_request(in_pem(asked, "CERTIFICATE REQUEST"))
            certificate = in_pem(leaf, "CERTIFICATE") + in_pem(chain[1], "CERTIFICATE")
            check(Credential(certificate=certificate, user_token="", issued_at=0, expires_at=1), keys, role="hub")


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
    credential = found(NOW).authority.issue(RAW, "spoke", NOW)
    token = credential.user_token
    claims = nats_jwt.read_token(token)
    assert (claims.subject, claims.name) == (nats_jwt.public_name("user", RAW), id_from_public_key(RAW))
    assert (claims.issued_at, claims.expires_at) == (credential.issued_at, credential.expires_at)
    header, body, signature = token.split(".")
    other = found(NOW).authority.issue(RAW, "hub", NOW).user_token.split(".")
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
