"""Gateways on free loopback ports."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from gateway_house import MODELS, House, Script, ScriptedAnswers, say_words

from felloe.gateway import ApiKeys, Gateway, GatewayConfig, Limits, Listener, Metrics

StartGateway = Callable[..., Awaitable[House]]


@pytest.fixture
async def start_gateway(tmp_path: Path) -> AsyncIterator[StartGateway]:
    """Starts gateways on free ports and stops them at the end of the test."""
    houses: list[House] = []

    async def start(
        script: Script = say_words,
        *,
        limits: Limits | None = None,
        listeners: Sequence[Listener] = (Listener(port=0),),
        keys: ApiKeys | None = None,
        **config: Any,
    ) -> House:
        answers = ScriptedAnswers(script)
        own_keys = keys or ApiKeys(tmp_path / "api-keys.json")
        metrics = Metrics()
        settings = GatewayConfig(listeners=tuple(listeners), limits=limits or Limits(), **config)
        gateway = Gateway(settings, answers, lambda: MODELS, own_keys, lambda: house.status, metrics)
        house = House(gateway, answers, own_keys, metrics)
        await gateway.start()
        houses.append(house)
        return house

    yield start
    for house in houses:
        await house.gateway.stop(0)


@pytest.fixture
async def house(start_gateway: StartGateway) -> House:
    """A gateway with all defaults."""
    return await start_gateway()
