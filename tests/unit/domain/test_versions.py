"""Neighbouring minor versions work together, anything else is refused by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felloe import __version__
from felloe.domain.errors import CATALOGUE
from felloe.domain.versions import Version, compatible, gap, parse, refusal

NUMBERS = st.integers(0, 999_999)
VERSIONS = st.builds("{}.{}.{}".format, NUMBERS, NUMBERS, NUMBERS)
SUFFIXES = st.sampled_from(["", "rc1", ".dev2", "-beta.3", "+local", "a1"])
ANYTHING = st.one_of(VERSIONS, st.text(max_size=40))


@given(ANYTHING, ANYTHING)
def test_it_does_not_matter_who_asks(one: str, other: str) -> None:
    assert compatible(one, other) == compatible(other, one)


@given(VERSIONS, SUFFIXES)
def test_every_version_works_with_itself(version: str, suffix: str) -> None:
    assert compatible(version + suffix, version)


@given(NUMBERS, st.integers(0, 50), st.integers(0, 50), NUMBERS, NUMBERS)
def test_minor_versions_may_differ_by_one_and_patches_by_anything(
    major: int, minor: int, other: int, patch: int, other_patch: int
) -> None:
    near = abs(minor - other) <= 1
    assert compatible(f"{major}.{minor}.{patch}", f"{major}.{other}.{other_patch}") == near


@given(NUMBERS, NUMBERS, NUMBERS)
def test_another_major_version_never_works(major: int, minor: int, patch: int) -> None:
    assert not compatible(f"{major}.{minor}.{patch}", f"{major + 1}.{minor}.{patch}")


@given(st.text(max_size=60).filter(lambda text: parse(text) is None))
def test_what_is_no_version_works_with_nothing(text: str) -> None:
    assert not compatible(text, __version__)
    assert not compatible(text, text)
    assert __version__ in refusal(__version__, text, "box")


@pytest.mark.parametrize(
    "text",
    ["", "1", "1.2", "0.1.0\n", " 0.1.0", "v0.1.0", "0.1.0 rc1", "0.1.-1", "٠.١.٠", "0.1.0" + "9" * 40, "0.1.0/../x"],
)
def test_almost_versions_are_none(text: str) -> None:
    assert parse(text) is None


def test_a_version_is_read() -> None:
    assert parse("0.12.3rc1") == Version(0, 12, 3)
    assert parse(__version__) is not None


def test_a_refusal_names_both_versions_and_who_must_be_updated() -> None:
    too_old = refusal("0.4.0", "0.1.2", "node attic")
    assert "0.4.0" in too_old and "0.1.2" in too_old
    assert too_old.endswith("update node attic to 0.4.0")
    too_new = refusal("0.1.0", "1.0.0", "node attic")
    assert "0.1.0" in too_new and "too new" in too_new
    assert too_new.endswith("update this node to 1.0.0")


def test_a_list_of_nodes_says_what_is_wrong_with_a_version() -> None:
    assert gap("0.4.0", "0.1.2") == "version 0.1.2: too old"
    assert gap("0.1.0", "0.4.0") == "version 0.4.0: too new"
    assert gap("0.1.0", "x") == "version 'x': unknown"
    assert gap("0.1.0", "0.2.0") == ""


@given(ANYTHING, ANYTHING)
def test_a_refusal_stays_short(ours: str, theirs: str) -> None:
    assert len(refusal(ours, theirs, "node")) < 400


def test_a_refusal_has_its_row_in_the_catalogue() -> None:
    assert CATALOGUE["version_refused"].status == 403
