"""An operator API whose operations a test module records: its fixture `operations` gives them, `client` asks them."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from felloe.console.operator import create_operator_app


class RecordedOperations:
    """Remembers what it was told; a subclass answers a few operations, and the others are not expected."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        if name in ("hubs", "root", "library", "catalog", "hardware", "serving"):
            return self

        async def unexpected(*_: object) -> None:
            raise AssertionError(name)

        return unexpected


@pytest.fixture
async def client(operations: RecordedOperations) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_operator_app(operations), raise_app_exceptions=False)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://felloe") as opened:
        yield opened
