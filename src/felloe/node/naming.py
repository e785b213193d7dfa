"""Which node an owner means: by its name, its id, or the beginning of its id. Pure."""

from collections.abc import Iterable
from typing import NamedTuple

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId

SHORTEST_PREFIX = 4
_MOST_NAMED = 8


class Known(NamedTuple):
    """A node that may be meant. `removed`: it was a member once and is none any more."""

    id: NodeId
    name: str
    removed: bool = False


def resolve(asked: str, known: Iterable[Known]) -> Known:
    """The node that is `asked` for; one that was removed only when no member is.

    Raises `not_found`, or `invalid_value` naming the ids when several fit.
    """
    nodes = list({node.id: node for node in known}.values())
    for fits in (_is_id, _is_name, _is_beginning):
        for removed in (False, True):
            found = [node for node in nodes if node.removed is removed and fits(asked, node)]
            if len(found) > 1:
                ids = ", ".join(sorted(node.id for node in found)[:_MOST_NAMED])
                raise FelloeError("invalid_value", f"{asked} may be {len(found)} nodes; name one by its id: {ids}")
            if found:
                return found[0]
    raise FelloeError("not_found", f"no node is called {asked}; `felloe ps` lists them")


def _is_id(asked: str, node: Known) -> bool:
    return node.id == asked


def _is_name(asked: str, node: Known) -> bool:
    return node.name == asked


def _is_beginning(asked: str, node: Known) -> bool:
    return len(asked) >= SHORTEST_PREFIX and node.id.startswith(asked)
