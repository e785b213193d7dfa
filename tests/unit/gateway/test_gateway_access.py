"""Who may enter, as pure decisions."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felloe.domain.errors import FelloeError
from felloe.gateway.access import (
    Shown,
    bearer_token,
    check_visitor,
    is_loopback,
    is_our_key,
    key_required,
    start_refusal,
)
from felloe.gateway.config import Listener

PEM = Path("x.pem")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_only_this_machine_reaches_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example", "", "127.1", "::ffff:10.0.0.1"])
def test_any_other_address_may_be_reached_by_others(host: str) -> None:
    assert not is_loopback(host)


def test_a_key_is_optional_on_loopback_alone() -> None:
    assert not key_required(loopback=True, require_key=False)
    assert key_required(loopback=True, require_key=True)
    assert key_required(loopback=False, require_key=False)


@pytest.mark.parametrize(
    ("listener", "any_key", "opens"),
    [
        (Listener(), False, True),
        (Listener(host="::1"), False, True),
        (Listener(certificate=PEM, private_key=PEM), False, True),
        (Listener(certificate=PEM), True, False),
        (Listener(private_key=PEM), True, False),
        (Listener(host="0.0.0.0"), True, False),
        (Listener(host="0.0.0.0", certificate=PEM, private_key=PEM), False, False),
        (Listener(host="0.0.0.0", certificate=PEM, private_key=PEM), True, True),
    ],
)
def test_a_listener_for_others_needs_tls_and_a_key(listener: Listener, any_key: bool, opens: bool) -> None:
    assert (start_refusal(listener, any_key=any_key) is None) == opens


def test_one_bearer_token_is_taken() -> None:
    assert bearer_token([]) is None
    assert bearer_token([b"Bearer fk-abc_DEF-123"]) == b"fk-abc_DEF-123"
    assert bearer_token([b"bearer   x "]) == b"x"


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=3))
def test_any_other_authorization_is_refused_and_not_repeated(values: list[bytes]) -> None:
    try:
        token = bearer_token(values)
    except FelloeError as error:
        assert error.code == "invalid_api_key"
    else:
        assert len(values) == 1
        assert token is not None
        assert token in values[0]


def test_only_our_own_form_of_key_must_be_valid_everywhere() -> None:
    assert is_our_key(b"fk-something")
    assert not is_our_key(b"sk-placeholder")


@given(st.text(max_size=60))
def test_a_foreign_host_never_enters(host: str) -> None:
    value = host.encode("utf-8", "surrogatepass")
    shown = Shown(secure=False, hosts=(value,))
    local = {"localhost", "127.0.0.1", "[::1]"}
    try:
        check_visitor(shown, names=(), origins=())
    except FelloeError as error:
        assert error.code == "forbidden"
    else:
        assert any(host.lower().startswith(name) for name in local)


@pytest.mark.parametrize("host", [b"localhost", b"127.0.0.1:8470", b"[::1]:1", b"LOCALHOST:99999"])
def test_a_local_name_enters(host: bytes) -> None:
    check_visitor(Shown(secure=False, hosts=(host,)), names=(), origins=())


@pytest.mark.parametrize(
    "shown",
    [
        Shown(secure=False),
        Shown(secure=False, hosts=(b"localhost", b"localhost")),
        Shown(secure=False, hosts=(b"localhost:80:80",)),
        Shown(secure=False, hosts=(b"localhost.",)),
        Shown(secure=False, hosts=(b"localhost",), origins=(b"null",)),
        Shown(secure=False, hosts=(b"localhost",), origins=(b"http://localhost", b"http://evil.example")),
        Shown(secure=True, hosts=(b"localhost",), origins=(b"http://localhost",)),
        Shown(secure=False, hosts=(b"localhost",), fetch_sites=(b"Same-Site",)),
    ],
)
def test_what_a_foreign_page_shows_is_refused(shown: Shown) -> None:
    with pytest.raises(FelloeError) as caught:
        check_visitor(shown, names=(), origins=())
    assert caught.value.code == "forbidden"
