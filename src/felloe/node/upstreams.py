"""Servers of the owner's own: which of them this node serves from, and which it has merely found."""

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from felloe.console.messages import UpstreamRequest, UpstreamRow
from felloe.domain.errors import FelloeError
from felloe.engines.discover import discover
from felloe.engines.options import Upstream
from felloe.engines.service import Engines
from felloe.host.files import write_atomic
from felloe.node.config import UpstreamConfig

logger = logging.getLogger(__name__)


class Upstreams:
    """Owns `state/upstreams.json`: what was added by command, beside what the configuration names."""

    def __init__(self, path: Path, engines: Engines, configured: Mapping[str, UpstreamConfig]) -> None:
        self._path = path
        self._engines = engines
        self._added = _read(path)
        self._configured = {
            name: Upstream(name=name, base_url=one.url, key_variable=one.key_env, models=one.models, slots=one.slots)
            for name, one in configured.items()
        }

    @property
    def _all(self) -> dict[str, Upstream]:
        return self._added | self._configured

    async def attach_all(self) -> None:
        """Serve from all of them; one that does not answer is logged."""
        for upstream in self._all.values():
            try:
                await self._engines.attach(upstream)
            except FelloeError as error:
                logger.error("the upstream %s is not used: %s", upstream.name, error)

    async def rows(self) -> list[UpstreamRow]:
        """In use first, then what listens on this machine and is not in use."""
        used = [UpstreamRow(one.name, one.base_url, "enabled", self._models_of(one.name)) for one in self._all.values()]
        urls = {one.base_url for one in self._all.values()}
        found = [
            UpstreamRow(one.name, one.base_url, "found", models, f"felloe upstream add {one.name}")
            for one, models in await _found()
            if one.base_url not in urls
        ]
        return used + found

    async def add(self, request: UpstreamRequest) -> UpstreamRow:
        """Serve from a server, now and at each start; without a URL, from the one found under this name."""
        if request.name in self._all:
            raise FelloeError("invalid_value", f"there is an upstream {request.name!r} already")
        url = request.url
        if not url:
            found = {one.name: one.base_url for one, _ in await _found()}
            if request.name not in found:
                raise FelloeError("not_found", f"nothing called {request.name!r} listens here; give its URL")
            url = found[request.name]
        upstream = Upstream(name=request.name, base_url=url, key_variable=request.key_env, slots=request.slots)
        await self._engines.attach(upstream)
        self._keep(self._added | {request.name: upstream})
        return UpstreamRow(request.name, url, "enabled", self._models_of(request.name))

    async def remove(self, name: str) -> None:
        """Stop serving from it. One that the configuration names must be removed there."""
        if name in self._configured:
            raise FelloeError("invalid_value", f"{name!r} stands in config.toml; remove it there")
        if name not in self._added:
            raise FelloeError("not_found", f"there is no upstream {name!r}")
        await self._engines.detach(name)
        self._keep({other: one for other, one in self._added.items() if other != name})

    def _models_of(self, name: str) -> tuple[str, ...]:
        return tuple(one.model.name for one in self._engines.replicas() if one.engine == f"upstream:{name}")

    def _keep(self, added: dict[str, Upstream]) -> None:
        write_atomic(self._path, msgspec.json.encode(list(added.values())))
        self._added = added


async def _found() -> list[tuple[Upstream, tuple[str, ...]]]:
    return [(one.upstream, one.models) for one in await discover()]


def _read(path: Path) -> dict[str, Upstream]:
    try:
        return {one.name: one for one in msgspec.json.decode(path.read_bytes(), type=list[Upstream])}
    except FileNotFoundError:
        return {}
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FelloeError("bad_state", f"{path} is damaged") from error
