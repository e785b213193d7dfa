"""Nodes that publish, decide and sign, over hubs in memory."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from catalog_house import KEY, take, write_model
from catalog_hubs import Hubs
from felloe.catalog.approval.trusted import TrustedCatalog
from felloe.catalog.store import ModelStore
from felloe.domain.approval import DECIDE, ENVELOPE, LOOK, PUBLISH, SIGN, CatalogAnswer, EnvelopeAnswer, PublishAnswer
from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName
from felloe.hubs.records import CATALOG, CATALOG_BOOK
from felloe.hubs.topics import CATALOG_NEWS
from felloe.mesh.state import StateFollower
from felloe.mesh.trust import Trust
from felloe.node.approvals import NodeApprovals
from felloe.node.catalog_reader import BookReader
from felloe.node.curating import Curating

MINE = ModelName("mine")


class Line:
    """A node's line to the hubs; `up` False: no hub can be reached. Implements `HubClient.ask` and `StateFollower`."""

    def __init__(self, hubs: Hubs) -> None:
        self.hubs = hubs
        self.up = True
        self.lie: Callable[[str, Any], Any] = lambda _, answer: answer
        self.looks = 0
        self._topics: dict[str, Callable[[bytes], None]] = {}
        hubs.states[0].on_change(CATALOG, lambda _: self.tell())

    async def follow(self, topic: str, callback: Callable[[bytes], None]) -> None:
        self._topics[topic] = callback
        self.tell()

    def tell(self) -> None:
        value = self.hubs.states[0].get(CATALOG)
        if self.up and value is not None and CATALOG in self._topics:
            self._topics[CATALOG](value)

    def tell_news(self) -> None:
        if self.up and CATALOG_NEWS in self._topics:
            self._topics[CATALOG_NEWS](b"1")

    async def ask(self, service: str, question: Any, answer: Any, *, timeout: float = 5.0) -> Any:
        await asyncio.sleep(0)
        if not self.up:
            raise FelloeError("network_unreachable", "no hub is there")
        return self.lie(service, await self._answer(service, question))

    async def _answer(self, service: str, question: Any) -> Any:
        book = self.hubs.book
        if service == PUBLISH:
            return PublishAnswer(await book.publish(question.envelope))
        if service == ENVELOPE:
            return EnvelopeAnswer(book.envelope(question.content))
        if service == LOOK:
            self.looks += 1
            return book.look(question.after)
        known = await (book.decide(question.decision) if service == DECIDE else book.sign(question.signature))
        assert service in (DECIDE, SIGN)
        return CatalogAnswer(known.root_version, known.targets_version)


class Place:
    """One node: its store holds `mine`. `curator` is whose key it has."""

    def __init__(self, folder: Path, hubs: Hubs, curator: str = "", *, approve_pulls: bool = True) -> None:
        house = hubs.house
        self.folder = folder
        self.line = Line(hubs)
        hubs.states[0].on_change(CATALOG_BOOK, lambda _: self.line.tell_news())
        self.store = ModelStore(folder / "models", KEY)
        self.approvals = NodeApprovals(TrustedCatalog(folder / "catalog", house.pin), now=lambda: house.now)
        trust = SimpleNamespace(issuer_key=house.issuer.public_key, list=SimpleNamespace(issued_at=int(house.now)))
        self.curating = Curating(
            self.line,
            self.approvals,
            self.store,
            BookReader(self.line, self.approvals, lambda: cast(Trust, trust)),
            folder / "curator.pem",
            approve_pulls=approve_pulls,
            now=lambda: house.now,
        )
        self.curating.key = house.people.get(curator)
        self._tasks: list[asyncio.Task[Any]] = []

    async def start(self, *, model: bool = True, works: bool = True) -> "Place":
        """`works` False: the node is not there to sign by itself."""
        self.folder.mkdir(parents=True, exist_ok=True)
        await self.store.open()
        if model:
            write_model(self.folder / "mine.gguf")
            await take(self.store, self.folder / "mine.gguf", MINE)
        await self.approvals.start(cast(StateFollower, self.line))
        self._tasks.append(asyncio.create_task(self.approvals.run()))
        if works:
            await self.work()
        return self

    async def work(self) -> None:
        await self.curating.start(cast(StateFollower, self.line))
        self._tasks.append(asyncio.create_task(self.curating.run()))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def may_load(self) -> bool:
        try:
            self.approvals.check(self.store.manifest_of(MINE))
        except FelloeError:
            return False
        return True

    @property
    def listing(self) -> Any:
        return next(one.publication.listing for one in self.line.hubs.book._publications.all().values())
