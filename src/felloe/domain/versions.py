"""Which versions of the program work together: those at most one minor version apart, within one major version.

A network is upgraded node by node, so two neighbouring minor versions meet on the wire; docs/upgrades.md has the rules
that keep them readable to each other. A wider gap is refused by name, never guessed at.
"""

import re
from typing import NamedTuple

_VERSION = re.compile(r"([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})(?:[.+-]?[a-z][0-9a-z.+-]{0,63})?", re.ASCII)
_LONGEST_SHOWN = 32


class Version(NamedTuple):
    """`major.minor.patch`; what may follow (`rc1`, `.dev2`, `+local`) decides nothing and is left out."""

    major: int
    minor: int
    patch: int


def parse(text: str) -> Version | None:
    """The version in `text`; None when it is none."""
    found = _VERSION.fullmatch(text)
    return None if found is None else Version(*map(int, found.groups()))


def compatible(ours: str, theirs: str) -> bool:
    """Whether nodes of these versions work together; false for what is no version, also beside itself."""
    first, second = parse(ours), parse(theirs)
    if first is None or second is None:
        return False
    return first.major == second.major and abs(first.minor - second.minor) <= 1


def gap(ours: str, theirs: str) -> str:
    """What a list of nodes says about a node of version `theirs`; empty where the two work together."""
    if compatible(ours, theirs):
        return ""
    first, second = parse(ours), parse(theirs)
    if first is None or second is None:
        return f"version {_shown(theirs)!r}: unknown"
    return f"version {theirs}: too {_word(first, second)}"


def refusal(ours: str, theirs: str, who: str) -> str:
    """Why `who`, which runs `theirs`, is refused by this node, which runs `ours`, and which of the two to update."""
    first, second = parse(ours), parse(theirs)
    if second is None:
        return f"{who} names the version {_shown(theirs)!r}, which is none; update it to {ours}"
    if first is None:
        return f"this node names the version {_shown(ours)!r}, which is none; update it to {theirs}"
    word = _word(first, second)
    step = f"update {who} to {ours}" if word == "old" else f"update this node to {theirs}"
    return f"{who} runs felloe {theirs}, too {word} for this node's {ours}: they may be one minor version apart; {step}"


def _word(first: Version, second: Version) -> str:
    return "old" if second < first else "new"


def _shown(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."
