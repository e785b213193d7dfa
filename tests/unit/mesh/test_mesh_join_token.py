"""The join token: one line that is right or says what is wrong with it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from felloe.domain.errors import FelloeError
from felloe.mesh.join_token import Address, JoinToken, parse_address, read_token, write_token

TOKEN = JoinToken((Address("192.168.1.5", 8471), Address("fd00::1", 8471)), bytes(range(32)), b"i" * 10, b"s" * 20)

addresses = st.builds(
    Address,
    st.one_of(
        st.ip_addresses(v=4).map(str),
        st.ip_addresses(v=6).map(str),
        st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z][a-z0-9]{0,10}){0,3}", fullmatch=True),
    ),
    st.integers(1, 65535),
)
tokens = st.builds(
    JoinToken,
    st.lists(addresses, min_size=1, max_size=8).map(tuple),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=10, max_size=10),
    st.binary(min_size=20, max_size=20),
)


def complaint(text: str) -> str:
    with pytest.raises(FelloeError) as caught:
        read_token(text)
    assert caught.value.code == "bad_token"
    return caught.value.detail


@settings(max_examples=60, deadline=None)
@given(tokens)
def test_what_is_written_is_read_again(token: JoinToken) -> None:
    text = write_token(token)
    assert text.isalnum()
    assert read_token(text) == token


@settings(max_examples=60, deadline=None)
@given(tokens, st.data())
def test_every_single_typo_is_caught(token: JoinToken, data: st.DataObject) -> None:
    text = write_token(token)
    place = data.draw(st.integers(0, len(text) - 1))
    typo = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz0123456789-_.").filter(lambda c: c != text[place]))
    mistyped = text[:place] + typo + text[place + 1 :]
    try:
        # The last character holds bits that mean nothing; whatever they are, the token is the same.
        assert (read_token(mistyped), place) == (token, len(text) - 1)
    except FelloeError as error:
        assert error.code == "bad_token"


@settings(max_examples=60, deadline=None)
@given(tokens, st.data())
def test_every_cut_is_called_a_cut(token: JoinToken, data: st.DataObject) -> None:
    text = write_token(token)
    assert "cut off" in complaint(text[: data.draw(st.integers(3, len(text) - 1))])


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300))
def test_any_other_text_is_no_token(text: str) -> None:
    assert complaint(text)


def test_line_breaks_blanks_and_capitals_do_not_matter() -> None:
    text = write_token(TOKEN)
    assert read_token(f"  {text[:50]}\n   {text[50:].upper()}\n") == TOKEN


def test_each_complaint_says_what_is_wrong() -> None:
    text = write_token(TOKEN)
    assert "not a join token" in complaint("sk-something")
    assert "not a join token" in complaint("")
    assert "newer" in complaint("fl2" + text[3:])
    assert "after its end" in complaint(text + "abcdefgh")
    assert "'1'" in complaint(text[:30] + "1" + text[31:])
    swapped = text[:30] + text[31] + text[30] + text[32:]
    assert "checksum" in complaint(swapped)
    assert "too long" in complaint("fl1" + "a" * 5000)


def test_the_secret_is_in_no_representation() -> None:
    assert "ssss" not in repr(TOKEN)
    assert b"s".hex() * 20 not in repr(TOKEN)


@pytest.mark.parametrize("count", [0, 9])
def test_a_token_names_one_to_eight_addresses(count: int) -> None:
    with pytest.raises(ValueError, match="addresses"):
        write_token(JoinToken((Address("a", 1),) * count, bytes(32), bytes(10), bytes(20)))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hub.local:8471", Address("hub.local", 8471)),
        ("10.0.0.1:1", Address("10.0.0.1", 1)),
        ("[::1]:65535", Address("::1", 65535)),
        ("[FD00:0::1]:80", Address("fd00::1", 80)),
    ],
)
def test_addresses_are_hosts_and_ports(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        ":80",
        "host:0",
        "host:65536",
        "host:٣",
        "host:+80",
        "::1:80",
        "[::1]80",
        "[host]:80",
        "ho st:80",
        "host\r\n:80",
        "a/b:80",
        "u@h:80",
        "x" * 64 + ":80",
        "-h:80",
        "fd00::1%eth0:80",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_address(text)
