"""Any sequence of pulls, removals, pins, loads, damage and restarts keeps what the store promises."""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from catalog_house import KEY, digest_of, put
from felloe.catalog.intake import Facts, TakenFile
from felloe.catalog.store import ModelStore
from felloe.domain.errors import FelloeError
from gguf_bytes import STRING, tiny_model

CONTENTS = [bytes(tiny_model(general__name=(STRING, f"model {number}"))) for number in range(3)]
QUOTA = 3 * len(CONTENTS[0])
NAMES = st.sampled_from(["one", "two", "three", "four"])


class StoreStates(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.loop = asyncio.new_event_loop()
        self.now = 1e9
        self.loaded: set[str] = set()
        self.pinned: set[str] = set()
        self.named: dict[str, bytes] = {}
        self.damaged: set[bytes] = set()
        self.reopen()

    def teardown(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.folder)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def clock(self) -> float:
        self.now += 1
        return self.now

    def forget_cleaned(self) -> None:
        """Clean-up may take models, but never one that it has to spare."""
        gone = set(self.named) - {kept.entry.name for kept in self.store.kept()}
        assert not gone & (self.pinned | self.loaded)
        for name in gone:
            del self.named[name]

    @rule()
    def reopen(self) -> None:
        self.store = ModelStore(self.folder, KEY, quota=QUOTA, loaded=lambda: self.loaded, now=self.clock)
        self.run(self.store.open())

    @rule(name=NAMES, number=st.integers(0, len(CONTENTS) - 1))
    def pull(self, name: str, number: int) -> None:
        content = CONTENTS[number]

        async def work() -> None:
            blob = await put(self.store.blobs, content, make_room=self.store.make_room)
            await self.store.accept(name, [TakenFile("m.gguf", "model", blob)], Facts())

        before = self.named.get(name)
        try:
            self.run(work())
        except FelloeError as error:
            self.forget_cleaned()
            assert error.code in ("disk_full", "invalid_value")
            if error.code == "invalid_value":
                assert before not in (None, content)
                self.damaged.discard(content)
            return
        self.named[name] = content
        self.damaged.discard(content)
        self.forget_cleaned()

    @precondition(lambda self: self.named)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.named)))
        self.run(self.store.remove(name))
        del self.named[name]
        self.pinned.discard(name)
        self.loaded.discard(name)

    @precondition(lambda self: self.named)
    @rule(data=st.data(), pinned=st.booleans())
    def pin(self, data: st.DataObject, pinned: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.named)))
        self.run(self.store.set_pinned(name, pinned))
        (self.pinned.add if pinned else self.pinned.discard)(name)

    @precondition(lambda self: self.named)
    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.named)))

        async def work() -> None:
            async with self.store.in_use(name) as path:
                assert path.read_bytes() == self.named[name]
                await self.store.clean()
                assert path.exists()
                self.loaded.add(name)

        if self.store.find(name) is not None:
            self.run(work())
            self.forget_cleaned()

    @rule()
    def unload(self) -> None:
        self.loaded.clear()

    @precondition(lambda self: self.store.list())
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([model.name for model in self.store.list()]))
        path = self.store.path_of(name)
        path.chmod(0o600)
        path.write_bytes(self.named[name][:-1] + b"!")
        verified = self.run(self.store.verify())
        assert {each.name for each in verified if each.damaged} >= {name}
        self.damaged.add(self.named[name])

    @rule()
    def clean(self) -> None:
        self.run(self.store.clean())
        self.forget_cleaned()

    @invariant()
    def everything_listed_is_what_was_pulled_and_lies_there_once(self) -> None:
        assert {kept.entry.name for kept in self.store.kept()} == set(self.named)
        for model in self.store.list():
            assert model.digest == digest_of(self.named[model.name])
            assert self.store.path_of(model.name).read_bytes() == self.named[model.name]
        for kept in self.store.kept():
            assert bool(kept.problem) == (self.named[kept.entry.name] in self.damaged)
            assert kept.entry.pinned == (kept.entry.name in self.pinned)
        needed = {digest_of(content) for content in self.named.values() if content not in self.damaged}
        assert needed <= set(self.store.blobs.sizes())


StoreStates.TestCase.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
TestStoreStates = StoreStates.TestCase
