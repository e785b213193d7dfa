"""Finds model servers on this machine at their usual ports; what is found serves nobody until the owner enables it."""

import asyncio

from msgspec import Struct

from felloe.domain.errors import FelloeError
from felloe.engines.options import Upstream
from felloe.engines.upstream import UpstreamServer

KNOWN_SERVERS = (("ollama", "http://127.0.0.1:11434/v1"), ("lm-studio", "http://127.0.0.1:1234/v1"))
"""Names and addresses that are asked; loopback only."""

_SECONDS = 1.0


class Found(Struct, frozen=True):
    """A server that listens, and the models that it lists. `upstream` is ready for `Engines.attach`."""

    upstream: Upstream
    models: tuple[str, ...]


async def discover(servers: tuple[tuple[str, str], ...] = KNOWN_SERVERS) -> tuple[Found, ...]:
    """Ask every known address at once, for a second at most."""
    found = await asyncio.gather(*(_ask(Upstream(name=name, base_url=url)) for name, url in servers))
    return tuple(each for each in found if each is not None)


async def _ask(upstream: Upstream) -> Found | None:
    server = UpstreamServer(upstream)
    try:
        async with asyncio.timeout(_SECONDS):
            models = await server.models()
    except (FelloeError, TimeoutError):
        return None
    finally:
        await server.close()
    return Found(upstream, tuple(model.id for model in models))
