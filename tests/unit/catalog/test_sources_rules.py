"""References are read strictly, files are chosen by rule, addresses are judged, and waits grow with failures."""

import ipaddress
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from felloe.catalog.sources.address_rules import AddressRules, is_public, shown
from felloe.catalog.sources.choice import choose
from felloe.catalog.sources.plan import file_name
from felloe.catalog.sources.progress import Meter
from felloe.catalog.sources.reference import (
    FileReference,
    HuggingFaceReference,
    OciReference,
    OllamaReference,
    WebReference,
    is_reference,
    parse_reference,
)
from felloe.catalog.sources.retry_rules import pause, retry_after
from felloe.catalog.sources.settings import Limits
from felloe.domain.errors import FelloeError

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("/models/x.gguf", FileReference("/models/x.gguf")),
        ("./hf:x.gguf", FileReference("./hf:x.gguf")),
        ("hf:a/b", HuggingFaceReference("a", "b")),
        ("HF:a/b.c@v1:Q4_K_M", HuggingFaceReference("a", "b.c", "v1", "Q4_K_M")),
        ("hf:a/b:sub/x y.gguf", HuggingFaceReference("a", "b", "", "sub/x y.gguf")),
        ("ollama:llama3.2", OllamaReference("library", "llama3.2", "latest")),
        ("ollama:me/mine:1b", OllamaReference("me", "mine", "1b")),
        ("oci:ghcr.io/a/b", OciReference("ghcr.io", "a/b", "latest")),
        ("oci:localhost:5000/b:v1", OciReference("localhost:5000", "b", "v1")),
        (f"oci:ghcr.io/a/b:v1@{DIGEST}", OciReference("ghcr.io", "a/b", DIGEST)),
        ("https://h.example/x.gguf?sig=1#part", WebReference("https://h.example/x.gguf?sig=1")),
    ],
)
def test_a_reference_is_read(text: str, reference: object) -> None:
    assert parse_reference(text) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x" * 3000,
        "a\x00b",
        "a\nb",
        "hf:a",
        "hf:a/b/c",
        "hf:../b",
        "hf:a/b@",
        "hf:a/b@../main",
        "hf:a/b:../../etc/passwd",
        "hf:a/b:/etc/passwd",
        "ollama:",
        "ollama:hf.co/a/b",
        "ollama:a/../b",
        "ollama:x:y/z",
        "oci:nohost/b",
        "oci:ghcr.io/",
        "oci:ghcr.io/A/b",
        "oci:ghcr.io/a/../b",
        "oci:ghcr.io/a@sha256:zz",
        "oci:evil@ghcr.io/a/b:v1",
        "https://",
        "https:/x.gguf",
        "https://user:pw@h.example/x.gguf",
        "https://h.example:99999/x.gguf",
        "https://h.example\\@inside/x.gguf",
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(FelloeError) as caught:
        parse_reference(text)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "reference")


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    for prefix in ("", "hf:", "ollama:", "oci:", "https://", "oci:ghcr.io/"):
        try:
            reference = parse_reference(prefix + text)
        except FelloeError:
            continue
        again = parse_reference(reference.text)
        assert parse_reference(again.text) == again


@pytest.mark.parametrize(("text", "is_one"), [("tiny", False), ("a/b:q4", False), ("x.gguf", True), ("hf:a/b", True)])
def test_names_of_models_are_no_references(text: str, is_one: bool) -> None:
    assert is_reference(text) is is_one


def test_the_projector_beside_the_model_comes_along() -> None:
    files = ["m-Q8_0.gguf", "mmproj-m-Q8_0.gguf", "mmproj-m-f16.gguf", "other/mmproj-f32.gguf", "m.imatrix.gguf"]
    assert [tuple(one) for one in choose(files, "", "here")] == [
        ("m-Q8_0.gguf", "model"),
        ("mmproj-m-f16.gguf", "projector"),
    ]


def test_a_quantisation_is_a_word_of_its_own() -> None:
    files = ["m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-IQ4_XS.gguf", "Q6_K/m-00001-of-00001.gguf"]
    assert choose(files, "q4_k_s", "here")[0].path == "m-Q4_K_S.gguf"
    assert choose(files, "Q6_K", "here")[0].path == "Q6_K/m-00001-of-00001.gguf"
    for wanted in ("Q4_K", "Q4", "gguf", "m", "."):
        with pytest.raises(FelloeError, match="names no one model"):
            choose(files, wanted, "here")


def test_a_name_that_would_steer_a_terminal_is_shown_escaped() -> None:
    for files in (["\x1b[2J-q4.gguf", "b-q4.gguf"], ["\x1b-00001-of-00002.gguf"], ["\x1b-00001-of-99999.gguf"]):
        with pytest.raises(FelloeError) as caught:
            choose(files, "", "here")
        assert caught.value.detail.isprintable()
    assert shown(httpx.URL("https://h.example/%1b%5b2J?secret")) == "https://h.example/%1b%5b2J"


def test_a_million_parts_are_not_believed() -> None:
    with pytest.raises(FelloeError, match="at most"):
        choose(["m-00001-of-99999.gguf"], "", "here")


@pytest.mark.parametrize(
    ("path", "name"), [("a/b.gguf", "b.gguf"), ("a:b?.gguf", "a_b_.gguf"), ("C:\\x\\y.gguf", "C__x_y.gguf")]
)
def test_a_file_gets_a_name_that_every_system_takes(path: str, name: str) -> None:
    assert file_name(path, "here") == name


@pytest.mark.parametrize("path", ["", "a/", "..", "a/.", "x\x00.gguf", "x" * 300, "\u202egguf"])
def test_a_file_without_a_name_is_refused(path: str) -> None:
    with pytest.raises(FelloeError, match="cannot be the name"):
        file_name(path, "here")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("168.63.129.16", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_only_addresses_of_the_open_internet_are_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


def test_https_never_becomes_http() -> None:
    rules = AddressRules(["http://mirror.example:8080"])
    mirror, public = httpx.URL("http://mirror.example:8080/x"), httpx.URL("https://hub.example/x")
    rules.check_url(mirror, None)
    rules.check_url(public, mirror)
    for url, before in ((mirror, public), (httpx.URL("http://hub.example/x"), None)):
        with pytest.raises(FelloeError) as caught:
            rules.check_url(url, before)
        assert caught.value.code == "address_refused"


def test_an_own_server_is_one_origin_not_one_host() -> None:
    rules = AddressRules(["https://10.0.0.5:8443"])
    inside = (ipaddress.ip_address("10.0.0.5"),)
    rules.check_addresses(httpx.URL("https://10.0.0.5:8443/x"), inside)
    for other in ("https://10.0.0.5/x", "https://10.0.0.6:8443/x", "http://10.0.0.5:8443/x"):
        with pytest.raises(FelloeError):
            rules.check_addresses(httpx.URL(other), inside)


def test_one_inner_address_among_public_ones_is_enough_to_refuse() -> None:
    found = [ipaddress.ip_address("8.8.8.8"), ipaddress.ip_address("127.0.0.1")]
    with pytest.raises(FelloeError):
        AddressRules([]).check_addresses(httpx.URL("https://rebinding.example/x"), found)


@pytest.mark.parametrize(
    "host", ["localhost", "printer.local", "metadata.google.internal", "hub", "127.1", "2130706433"]
)
def test_names_of_the_inside_do_not_go_through_a_proxy(host: str) -> None:
    with pytest.raises(FelloeError):
        AddressRules([]).check_name(httpx.URL(f"https://{quote(host)}/x"))
    AddressRules([f"https://{host}"]).check_name(httpx.URL(f"https://{host}/x"))


def test_waits_grow_and_end() -> None:
    limits = Limits(tries=5, first_pause_seconds=1, longest_pause_seconds=4)
    assert [pause(failures, None, limits) for failures in range(1, 6)] == [1, 2, 4, 4, None]


def test_a_server_may_ask_for_more_patience_within_reason() -> None:
    limits = Limits(longest_wait_seconds=60)
    assert (pause(1, 30.0, limits), pause(1, 61.0, limits)) == (30.0, None)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 90.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("٣", None),
        ("Mon, 99999999999999999999 Jan 2020 00:00:00 GMT", None),
        ("9" * 5000, 999_999_999.0),
        ("x" * 10_000, None),
    ],
)
def test_a_retry_after_is_read_as_rfc_9110_says(header: str, seconds: float | None) -> None:
    assert retry_after(header, now=10.0) == seconds


def test_the_rate_does_not_count_what_was_here_before() -> None:
    meter = Meter()
    meter.expect({"a": 1000, "b": 1000})
    first = meter.length("a", 600, 1000, now=10.0)
    assert first is not None
    assert (first.done, first.total, first.rate, first.eta) == (600, 2000, 0.0, 0.0)
    later = meter.length("a", 800, 1000, now=12.0)
    assert later is not None
    assert (later.rate, later.eta) == (100.0, 12.0)


def test_reports_are_few_but_the_end_is_told() -> None:
    meter = Meter()
    meter.expect({"a": 1000})
    told = [meter.length("a", length, 1000, now=length / 10_000) for length in range(0, 1001, 10)]
    assert told[-1] is not None
    assert told[-1].done == 1000
    assert sum(report is not None for report in told) == 2


def test_a_wait_is_told_with_what_is_here() -> None:
    meter = Meter()
    meter.expect({"a": 1000})
    meter.length("a", 10, 1000, now=1.0)
    report = meter.waiting("the hub answers 503")
    assert (report.done, report.total, report.file, report.note) == (10, 1000, "a", "the hub answers 503")
