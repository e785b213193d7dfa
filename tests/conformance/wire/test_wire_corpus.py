"""This version reads what earlier versions wrote, and what the next one may add."""

import re
from typing import Any

import msgspec
import pytest
from wire_case import Case, meaning
from wire_corpus import CASES, manifest, own_version, recorded, versions

from felloe.domain.errors import FelloeError
from felloe.mesh.roster_wire import BadRecord
from felloe.mesh.stream_wire import BadMessage

RECORDED = [(version, name) for version in versions() for name in manifest(version)]
REFUSALS = (FelloeError, BadRecord, BadMessage, msgspec.DecodeError)


def in_json(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(meaning(value)))


@pytest.mark.parametrize(("version", "name"), RECORDED)
def test_a_message_of_an_earlier_version_means_what_it_meant(version: str, name: str) -> None:
    case = CASES[name]
    assert in_json(case.read(recorded(version, case))) == manifest(version)[name]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_this_version_reads_what_it_writes(case: Case) -> None:
    case.read(case.write())


@pytest.mark.parametrize("case", [case for case in CASES.values() if case.grow], ids=lambda case: case.name)
def test_what_a_newer_version_adds_is_ignored(case: Case) -> None:
    assert case.grow is not None
    message = case.write()
    grown = case.grow(message)
    assert grown != message
    assert in_json(case.read(grown)) == in_json(case.read(message))


@pytest.mark.parametrize("case", [case for case in CASES.values() if case.refuse], ids=lambda case: case.name)
def test_what_would_be_unsafe_to_ignore_is_refused(case: Case) -> None:
    assert case.refuse is not None
    with pytest.raises(REFUSALS):
        case.read(case.refuse(case.write()))


def test_the_version_before_this_one_is_recorded() -> None:
    major, minor = map(int, own_version().split("."))
    assert (major, minor) == (0, 1) or minor == 0 or f"{major}.{minor - 1}" in versions()
    assert all(re.fullmatch(r"[0-9]+\.[0-9]+", version) for version in versions())


def test_every_message_of_this_version_is_recorded() -> None:
    """If this fails, a kind of message is new: run tests/conformance/wire/wire_corpus.py and commit what it wrote."""
    assert set(CASES) == set(manifest(own_version()))
