"""Changes JSON by what it means: values, keys, types, order, depth."""

import copy
import json
from random import Random
from typing import Any

_ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 2**31, 2**53, 2**53 + 1, 2**63, 2**64, 10**40, -(2**63), 0.5, 1e308, -0.0, "", "..",
    "../x", "a/../b", "/", "a\u0000b", "\u001b[2J", "\u202e", "x" * 300, "ä", "[]", [], {}, [[]], {"": {}},
    "sha256:" + "0" * 64, "blake3:" + "0" * 64, "0" * 40, "0" * 64, "m.gguf", "m-00001-of-00002.gguf",
    "m-00001-of-99999.gguf", "mmproj-m.gguf", "m-Q4_K_M.gguf",
)  # fmt: skip


def mutate_json(data: bytes, random: Random) -> bytes | None:
    """One to three changes; None when `data` is no JSON."""
    try:
        tree: Any = [json.loads(data)]
    except (ValueError, RecursionError):
        return None
    for _ in range(random.choice((1, 1, 2, 3))):
        _change(tree, random)
    return json.dumps(tree[0], separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


def _change(tree: Any, random: Random) -> None:
    parent, key = random.choice(_places(tree))
    value = parent[key]
    what = random.randrange(6)
    if what == 0:
        parent[key] = _odd(random)
    elif what == 1 and isinstance(parent, dict):
        del parent[key]
    elif what == 1 and parent is not tree:
        parent.insert(key, copy.deepcopy(value))
    elif what == 2 and isinstance(value, str):
        at = random.randint(0, len(value))
        parent[key] = value[:at] + str(_odd(random)) + value[at + random.randrange(3) :]
    elif what == 3 and isinstance(value, dict):
        value[str(_odd(random))] = _odd(random)
    elif what == 4 and isinstance(value, list):
        value.append(copy.deepcopy(random.choice([*value, _odd(random)])))
    elif what == 5 and isinstance(value, int):
        parent[key] = value + random.choice((1, -1, 2**32))
    else:
        parent[key] = [value] if random.random() < 0.2 else _odd(random)


def _odd(random: Random) -> Any:
    """One of its own: later changes may go into it."""
    return copy.deepcopy(random.choice(_ODD))


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every value, as its parent and its key there."""
    found: list[tuple[Any, Any]] = []
    waiting: list[Any] = [tree]
    while waiting:
        parent = waiting.pop()
        keys = list(parent) if isinstance(parent, dict) else range(len(parent))
        for key in keys:
            found.append((parent, key))
            if isinstance(parent[key], dict | list):
                waiting.append(parent[key])
    return found
