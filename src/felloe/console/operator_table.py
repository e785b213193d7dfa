"""How a part of the operator API says which path is which operation."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, NamedTuple


class Table(NamedTuple):
    """Paths that are asked (GET), told (POST), and followed (POST, answered step by step)."""

    asked: dict[str, Callable[[], Awaitable[Any]]]
    told: dict[str, tuple[Any, Callable[[Any], Awaitable[Any]]]]
    followed: dict[str, tuple[Any, Callable[[Any], AsyncGenerator[Any, None]], Any]]
