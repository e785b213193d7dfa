"""Bounds on JSON schemas from requests: the engine makes a grammar of them, in time that grows with their square."""

from typing import cast

from felloe.domain.errors import FelloeError

_DEPTH = 32
_NODES = 1000
_ENUM_MEMBERS = 500
_REPEATS = 2000
_PATTERN = 500
_COUNTED = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")


def check_schema(schema: object, param: str) -> None:
    """Raises `invalid_value` for a schema that would keep the engine busy before the first token."""
    nodes = 0
    pending: list[tuple[object, int]] = [(schema, 0)]
    while pending:
        node, depth = pending.pop()
        if not isinstance(node, dict | list):
            continue
        nodes += 1
        if depth > _DEPTH:
            raise _refusal(f"it is nested more than {_DEPTH} deep", param)
        if nodes > _NODES:
            raise _refusal(f"it has more than {_NODES} parts", param)
        if isinstance(node, dict):
            mapping = cast(dict[str, object], node)
            _check_limits(mapping, param)
            pending.extend((value, depth + 1) for value in mapping.values())
        else:
            members = cast(list[object], node)
            if len(members) > _ENUM_MEMBERS:
                raise _refusal(f"a list in it has more than {_ENUM_MEMBERS} members", param)
            pending.extend((value, depth + 1) for value in members)


def _check_limits(node: dict[str, object], param: str) -> None:
    for name in _COUNTED:
        count = node.get(name)
        if isinstance(count, int) and not 0 <= count <= _REPEATS:
            raise _refusal(f"{name} is not between 0 and {_REPEATS}", param)
    pattern = node.get("pattern")
    if isinstance(pattern, str) and len(pattern) > _PATTERN:
        raise _refusal(f"a pattern in it is longer than {_PATTERN} characters", param)


def _refusal(reason: str, param: str) -> FelloeError:
    return FelloeError("invalid_value", f"the JSON schema is refused: {reason}", param=param)
