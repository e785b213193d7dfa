"""A node follows the plan: it loads and unloads what the plan says, and says what it could not do."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import cast

import msgspec
import pytest

from catalog_house import KEY, take, write_model
from felloe.catalog.manifests import content_id
from felloe.catalog.sources.progress import PullProgress
from felloe.catalog.store import ModelStore
from felloe.domain.errors import FelloeError
from felloe.domain.fleet import RAM, Device, Machine
from felloe.domain.ids import ContentId, ModelName, NodeId
from felloe.domain.manifest import Manifest
from felloe.domain.models import Model
from felloe.domain.plan import Need, Part, Placement, Plan
from felloe.domain.roster import Replica, ReplicaState
from felloe.domain.serving import NetworkPlan
from felloe.engines.options import EngineOptions
from felloe.engines.service import Engines
from felloe.node.converging import Converging
from felloe.node.planned_load import LoadingPorts
from routing_fakes import make_replica
from waiting import until

HERE, ELSEWHERE = NodeId("a" * 26), NodeId("b" * 26)
MIB = 2**20


class PlannedEngines:
    """Runs nothing, and says that it does; `failures` are raised by the next loads, one each."""

    def __init__(self) -> None:
        self.running: dict[str, Replica] = {}
        self.options: list[EngineOptions] = []
        self.forgiven: list[bool] = []
        self.unloaded: list[tuple[str, float]] = []
        self.failures: list[FelloeError] = []
        self.wanted_more: dict[str, int] = {}
        self.hold = asyncio.Event()
        self.hold.set()
        self.drain = asyncio.Event()
        self.drain.set()
        self._callbacks: list[Callable[[], None]] = []

    def on_change(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def replicas(self) -> tuple[Replica, ...]:
        return tuple(self.running.values())

    def problems(self) -> dict[str, str]:
        return {name: "it crashed" for name, replica in self.running.items() if replica.state == "failed"}

    def become(self, name: str, state: ReplicaState) -> None:
        self.running[name] = msgspec.structs.replace(self.running[name], state=state)
        for callback in self._callbacks:
            callback()

    async def load(
        self,
        model: Model,
        path: Path,
        options: EngineOptions,
        *,
        forgive: bool,
        short: Callable[[dict[str, int]], None],
    ) -> Replica:
        assert path.is_file()
        self.options.append(options)
        self.forgiven.append(forgive)
        self.running[model.name] = msgspec.structs.replace(
            make_replica(model.name), state="starting", parts=options.parts
        )
        try:
            await self.hold.wait()
            if self.failures:
                short(self.wanted_more)
                raise self.failures.pop(0)
        except BaseException:
            del self.running[model.name]
            raise
        self.become(model.name, "ready")
        return self.running[model.name]

    async def unload(self, name: str, drain_seconds: float, *, forgive: bool) -> None:
        assert not forgive
        self.become(name, "draining")
        await self.drain.wait()
        self.unloaded.append((name, drain_seconds))
        del self.running[name]


class House:
    """A node that follows plans, with a real store that holds `mine` and a machine of a given size."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engines = PlannedEngines()
        self.store = ModelStore(folder / "models", KEY)
        self.refusal: FelloeError | None = None
        self.memory = 1000 * MIB
        self.fetched: list[ContentId] = []
        self.heard = asyncio.Event()
        self.heard.set()
        self.told = 0
        self.now = 100.0
        self.drains = False
        self.look_with: Callable[[], Awaitable[Machine]] | None = None
        self.elsewhere: FelloeError | None = None
        self.converging = Converging(
            HERE,
            LoadingPorts(
                engines=cast(Engines, self.engines),
                store=self.store,
                decided=self.decided,
                fetch=self.fetch,
                gate=self.gate,
                look=self.look,
                told=self.told_machine,
                devices=tuple,
                room_seconds=0.0,
            ),
            changed=self.changed,
            rests=lambda: self.drains,
            clock=lambda: self.now,
            wall=lambda: 1_800_000_000.0,
        )

    def changed(self) -> None:
        self.told += 1

    async def decided(self, content: ContentId) -> None:
        assert content
        await self.heard.wait()

    def gate(self, manifest: Manifest) -> None:
        if self.refusal is not None:
            raise self.refusal

    def told_machine(self) -> Machine:
        return Machine(id=HERE, name="here", devices=(Device(id=RAM, kind="cpu", memory=1000 * MIB),))

    async def look(self) -> Machine:
        if self.look_with is not None:
            return await self.look_with()
        ram = Device(id=RAM, kind="cpu", memory=self.memory)
        return Machine(id=HERE, name="here", devices=(ram,))

    async def fetch(self, content: ContentId, report: Callable[[PullProgress], None]) -> Model:
        self.fetched.append(content)
        report(PullProgress(done=1, total=2, eta=3.0))
        if self.elsewhere is not None:
            raise self.elsewhere
        await take(self.store, self.folder / "other.gguf", "other")
        return self.store.usable("other")

    @property
    def mine(self) -> ContentId:
        return content_id(self.store.manifest_of("mine"))

    def placed(self, name: str = "chat", mib: int = 100, **changes: object) -> Placement:
        parts = (Part(device=RAM, layers=3, need=Need(weights=mib * MIB)),)
        placement = Placement(
            model=ModelName(name),
            variant=ModelName("mine"),
            node=HERE,
            parts=parts,
            context=512,
            slots=2,
            content=self.mine,
        )
        return msgspec.structs.replace(placement, **changes)

    def plan(self, *placements: Placement, number: int = 1) -> None:
        plan = NetworkPlan(plan=Plan(placements=placements, number=number), term=1, made_at=0.0)
        self.converging.plan_changed(msgspec.json.encode(plan))

    def ready(self, name: str = "chat") -> bool:
        return name in self.engines.running and self.engines.running[name].state == "ready"

    async def settled(self) -> None:
        """Every change that could follow has been made."""
        await until(lambda: not self.converging.loading() and not self.converging._works)  # pyright: ignore[reportPrivateUsage]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    built = House(tmp_path)
    await built.store.open()
    write_model(tmp_path / "mine.gguf")
    await take(built.store, tmp_path / "mine.gguf", "mine")
    task = asyncio.create_task(built.converging.run())
    yield built
    task.cancel()
    await asyncio.wait({task})


OUT_OF_MEMORY = FelloeError("out_of_memory", "mine.gguf: no room on ram")


async def test_what_the_plan_has_here_is_loaded_as_it_says_under_the_name_that_requests_use(house: House) -> None:
    house.plan(house.placed(kv_type="q8_0"), msgspec.structs.replace(house.placed("far"), node=ELSEWHERE), number=7)
    await until(house.ready)
    options = house.engines.options[0]
    assert (options.context, options.slots, options.kv_type, options.parts) == (512, 2, "q8_0", house.placed().parts)
    assert list(house.engines.running) == ["chat"]
    assert house.converging.number == 7
    marked = house.converging.mark(house.engines.replicas())[0]
    assert (marked.planned, marked.variant, marked.content) == (True, "mine", house.mine)
    assert house.converging.files() == {"mine"}
    assert house.told > 0


async def test_a_node_that_has_not_heard_of_the_approval_yet_waits_and_fails_nothing(house: House) -> None:
    house.refusal = FelloeError("not_approved", "nothing was heard yet")
    house.heard.clear()
    house.plan(house.placed())
    await until(lambda: [one.stage for one in house.converging.loading()] == ["waiting"])
    house.refusal = None
    house.heard.set()
    await until(house.ready)
    assert house.converging.failures() == ()


async def test_what_the_plan_has_here_no_more_is_drained_and_unloaded(house: House) -> None:
    house.plan(house.placed())
    await until(house.ready)
    house.plan(number=2)
    await until(lambda: house.engines.unloaded)
    assert house.engines.unloaded == [("chat", 30.0)]
    await until(lambda: not house.converging.placed())


async def test_what_changed_in_the_plan_is_loaded_anew_and_a_corrected_need_changes_nothing(house: House) -> None:
    house.plan(house.placed())
    await until(house.ready)
    house.plan(house.placed(mib=150), number=2)
    await house.settled()
    assert not house.engines.unloaded
    house.plan(house.placed(context=1024), number=3)
    await until(lambda: len(house.engines.options) == 2 and house.ready())
    assert house.engines.options[1].context == 1024
    assert len(house.engines.unloaded) == 1


async def test_without_a_plan_nothing_changes_and_one_that_cannot_be_read_is_no_plan(house: House) -> None:
    house.plan(house.placed())
    await until(house.ready)
    house.converging.plan_changed(b'{"plan": 7}')
    house.converging.plan_changed(b"\xff")
    await house.settled()
    assert house.ready()


async def test_files_that_are_not_here_come_from_other_nodes_and_progress_is_told(house: House) -> None:
    write_model(house.folder / "other.gguf")
    house.elsewhere = FelloeError("no_holder", "nobody has it")
    house.plan(house.placed(content=ContentId("ab" * 32)))
    await until(house.converging.failures)
    assert house.fetched == ["ab" * 32]
    failure = house.converging.failures()[0]
    assert (failure.code, failure.times, failure.retry_in) == ("no_holder", 1, 60.0)


async def test_a_load_that_fails_for_memory_is_told_with_what_was_learned_and_rests(house: House) -> None:
    house.engines.failures = [OUT_OF_MEMORY, OUT_OF_MEMORY]
    house.engines.wanted_more = {RAM: 7 * MIB}
    house.plan(house.placed())
    await until(house.converging.failures)
    failure = house.converging.failures()[0]
    assert (failure.code, failure.short, failure.devices) == ("out_of_memory", {RAM: 7 * MIB}, (RAM,))
    house.plan(house.placed(), number=2)
    house.plan(house.placed(mib=200), number=3)
    await house.settled()
    assert len(house.engines.options) == 1
    house.now += 61
    house.plan(house.placed(), number=4)
    await until(lambda: house.converging.failures()[0].times == 2)
    assert house.converging.failures()[0].retry_in == 120.0
    assert house.engines.forgiven == [False, True]


async def test_a_changed_placement_is_tried_at_once_after_a_failure(house: House) -> None:
    house.engines.failures = [OUT_OF_MEMORY]
    house.plan(house.placed())
    await until(house.converging.failures)
    house.plan(house.placed(context=256), number=2)
    await until(house.ready)
    assert not house.converging.failures()


async def test_a_replica_is_not_started_where_its_memory_is_taken(house: House) -> None:
    house.plan(house.placed("one", mib=700))
    await until(lambda: house.ready("one"))
    house.plan(house.placed("one", mib=700), house.placed("two", mib=400), number=2)
    await until(house.converging.failures)
    failure = house.converging.failures()[0]
    assert (failure.model, failure.code) == ("two", "out_of_memory")
    assert "ram is short of" in failure.detail
    assert len(house.engines.options) == 1


async def test_two_loads_at_once_never_take_the_same_memory(house: House) -> None:
    house.engines.hold.clear()
    house.plan(*(house.placed(f"model-{number}", mib=400) for number in range(4)))
    await until(lambda: len(house.converging.failures()) == 2)
    assert len(house.engines.running) == 2
    house.engines.hold.set()
    await house.settled()
    assert sum(house.ready(f"model-{number}") for number in range(4)) == 2


async def test_what_the_owner_loaded_is_left_alone_and_the_plan_is_told_so(house: House) -> None:
    house.engines.running["chat"] = make_replica("chat")
    house.plan(house.placed())
    await until(house.converging.failures)
    assert house.converging.failures()[0].code == "already_loaded"
    assert house.converging.mark(house.engines.replicas())[0].planned is False
    house.plan(number=2)
    await house.settled()
    assert not house.engines.unloaded


async def test_what_the_owner_takes_over_is_the_plans_no_more(house: House) -> None:
    house.plan(house.placed())
    await until(house.ready)
    house.converging.adopt(ModelName("chat"))
    house.plan(number=2)
    await house.settled()
    assert house.ready()
    assert house.converging.mark(house.engines.replicas())[0].planned is False


async def test_an_engine_that_was_given_up_is_told_and_taken_away(house: House) -> None:
    house.plan(house.placed())
    await until(house.ready)
    house.engines.become("chat", "failed")
    await until(lambda: house.engines.unloaded and house.converging.failures())
    failure = house.converging.failures()[0]
    assert (failure.code, failure.detail) == ("engine_failed", "it crashed")
    await house.settled()
    assert len(house.engines.options) == 1


async def test_a_model_that_is_withdrawn_ends_and_comes_back_when_it_may(house: House) -> None:
    house.plan(house.placed())
    await until(house.ready)
    house.refusal = FelloeError("model_withdrawn", "it leaks")
    house.converging.approvals_changed()
    await until(lambda: house.engines.unloaded and house.converging.failures())
    await house.settled()
    assert house.converging.failures()[0].code == "model_withdrawn"
    house.refusal = None
    house.converging.approvals_changed()
    await until(house.ready)


async def test_what_is_wanted_no_more_is_broken_off_while_it_loads(house: House) -> None:
    house.engines.hold.clear()
    house.plan(house.placed())
    await until(lambda: house.engines.options)
    assert house.converging.loading()[0].stage == "starting"
    house.plan(number=2)
    await until(lambda: not house.engines.running and not house.converging.loading())
    assert not house.converging.failures()


async def test_a_node_that_drains_begins_nothing(house: House) -> None:
    house.drains = True
    house.plan(house.placed())
    await house.settled()
    assert not house.engines.options


async def test_a_long_drain_is_not_begun_again_by_the_next_plan(house: House) -> None:
    house.plan(house.placed())
    await until(house.ready)
    house.engines.drain.clear()
    for number in range(2, 6):
        house.plan(number=number)
    await until(lambda: house.engines.running["chat"].state == "draining")
    house.plan(house.placed(context=256), number=9)
    house.engines.drain.set()
    await until(lambda: house.ready() and house.engines.options[-1].context == 256)
    assert len(house.engines.unloaded) == 1


async def test_what_went_wrong_unexpectedly_is_told_and_not_tried_without_end(house: House) -> None:
    async def broken() -> Machine:
        raise OSError("the driver is gone")

    house.look_with = broken
    house.plan(house.placed())
    await until(house.converging.failures)
    await house.settled()
    assert house.converging.failures()[0].code == "internal"
    assert not house.engines.options


async def test_an_old_failure_of_what_is_wanted_no_more_is_told_no_more(house: House) -> None:
    house.engines.failures = [OUT_OF_MEMORY]
    house.plan(house.placed())
    await until(house.converging.failures)
    house.now += 61
    house.plan(number=2)
    await until(lambda: not house.converging.failures())
