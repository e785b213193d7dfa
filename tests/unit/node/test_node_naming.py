"""An owner names a node by its name, its id, or the beginning of its id."""

import pytest

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.node.naming import Known, resolve

ATTIC = Known(NodeId("abcd" + "a" * 22), "attic")
CELLAR = Known(NodeId("abce" + "a" * 22), "cellar")
OLD_ATTIC = Known(NodeId("zzzz" + "a" * 22), "attic", removed=True)
ALL = (OLD_ATTIC, ATTIC, CELLAR)


@pytest.mark.parametrize("asked", ["attic", "abcd" + "a" * 22, "abcd", "abcdaaa"])
def test_a_node_is_found(asked: str) -> None:
    assert resolve(asked, ALL) == ATTIC


@pytest.mark.parametrize("asked", ["", "abc", "att", "garage", "abcf"])
def test_what_fits_nothing_is_told(asked: str) -> None:
    with pytest.raises(FelloeError, match="no node is called") as refused:
        resolve(asked, ALL)
    assert refused.value.code == "not_found"


def test_several_nodes_that_fit_are_named_by_their_ids() -> None:
    twin = Known(NodeId("q" * 26), "attic")
    with pytest.raises(FelloeError, match=f"{ATTIC.id}, {twin.id}") as refused:
        resolve("attic", (*ALL, twin))
    assert refused.value.code == "invalid_value"


def test_a_name_goes_before_the_beginning_of_an_id() -> None:
    odd = Known(NodeId("q" * 26), "abcd")
    assert resolve("abcd", (*ALL, odd)) == odd


def test_a_removed_node_is_found_by_its_id_and_when_no_member_has_its_name() -> None:
    assert resolve("zzzz", ALL) == OLD_ATTIC
    assert resolve("attic", (OLD_ATTIC, CELLAR)) == OLD_ATTIC


def test_one_node_known_from_two_sides_is_one() -> None:
    assert resolve("attic", (ATTIC, ATTIC)) == ATTIC
