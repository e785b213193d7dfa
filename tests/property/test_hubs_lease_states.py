"""Whatever is late, lost, frozen or asleep: never two leaders, terms that grow, and a leader in the end."""

import asyncio
import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from felloe.domain.errors import FelloeError
from felloe.domain.ids import NodeId
from felloe.hubs.lease import Leadership
from hubs_fakes import FakeState, FakeStore, settle

COUNT = 3
NUMBERS = st.integers(0, COUNT - 1)


class Hub:
    """A hub whose clock runs a little wrong, and whose process may be frozen or asleep."""

    def __init__(self, world: "Leading", number: int, rate: float) -> None:
        self.node = NodeId("abc"[number] * 26)
        self.state = FakeState(world.store, follows=False)
        self.awake = True
        self.willing = True
        self.task: asyncio.Task[None] | None = None
        offset = 1000.0 * number
        self.leadership = Leadership(
            self.state,
            self.node,
            clock=lambda: offset + world.time * rate,
            wants=lambda: self.willing,
            random=world.random.random,
        )

    def leads(self) -> bool:
        return self.leadership.term() is not None

    def act(self) -> None:
        """Begin a step unless one is under way; writes that were let go on go on."""
        if self.awake and (self.task is None or self.task.done()):
            self.task = asyncio.ensure_future(self._step())

    async def _step(self) -> None:
        try:
            await self.leadership.step()
        except FelloeError as error:
            assert error.code in ("network_unreachable", "overloaded", "not_leader")


class Leading(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 2**16), rates=st.tuples(*[st.sampled_from([0.95, 1.0, 1.05])] * COUNT))
    def begin(self, seed: int, rates: tuple[float, ...]) -> None:
        self.time = 0.0
        self.random = random.Random(seed)
        self.store = FakeStore()
        self.loop = asyncio.new_event_loop()
        self.hubs = [Hub(self, number, rate) for number, rate in enumerate(rates)]
        self.led: list[tuple[int, NodeId]] = []

    def run(self) -> None:
        self.loop.run_until_complete(settle(8))
        self.look()

    def look(self) -> None:
        leaders = [(hub.leadership.term() or 0, hub.node) for hub in self.hubs if hub.leads()]
        assert len(leaders) <= 1, f"two leaders at {self.time}: {leaders}"
        if leaders and (not self.led or self.led[-1] != leaders[0]):
            assert not self.led or leaders[0][0] > self.led[-1][0], "terms grow with each new leader"
            self.led.append(leaders[0])

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 7.0, 11.9, 15.0, 40.0]))
    def wait(self, seconds: float) -> None:
        # In small steps, so that no moment with two leaders is jumped over.
        end = self.time + seconds
        while self.time < end:
            self.time = min(end, self.time + 0.5)
            self.look()

    @rule(number=NUMBERS)
    def act(self, number: int) -> None:
        async def begin() -> None:
            self.hubs[number].act()

        self.loop.run_until_complete(begin())
        self.run()

    @rule(seconds=st.sampled_from([2.0, 10.0, 30.0]), late=st.none() | NUMBERS)
    def live(self, seconds: float, late: int | None = None) -> None:
        """All that are awake act, and all but `late` read on, as they do when little is wrong."""
        end = self.time + seconds
        while self.time < end:
            for number, hub in enumerate(self.hubs):
                if hub.awake:
                    if number != late:
                        hub.state.catch_up()
                    self.act(number)
            self.time += 1.0
            self.look()

    def leader(self) -> int:
        return next((number for number, hub in enumerate(self.hubs) if hub.leads()), 0)

    @rule(trouble=st.sampled_from(["cut off", "frozen", "held"]), seconds=st.sampled_from([5.0, 14.0, 20.0]))
    def trouble_the_leader(self, trouble: str, seconds: float) -> None:
        hub = self.hubs[self.leader()]
        hub.awake, hub.state.reachable, hub.state.held = trouble != "frozen", trouble != "cut off", trouble == "held"
        self.live(seconds)

    @rule(waits=st.tuples(*[st.sampled_from([1.0, 5.0, 10.0])] * 3), who=st.none() | NUMBERS)
    def slow_write(self, waits: tuple[float, ...], who: int | None) -> None:
        """The leader's write, or another's, takes long to be done and longer to be answered."""
        state = self.hubs[self.leader() if who is None else who].state
        state.held = True
        for seconds in waits:
            self.live(seconds)
            state.release()
        self.run()

    @rule()
    def heal(self) -> None:
        for hub in self.hubs:
            hub.awake = hub.willing = hub.state.reachable = True
            hub.state.held = False
            while hub.state.release():
                self.run()

    @rule(number=NUMBERS, most=st.none() | st.integers(1, 3))
    def catch_up(self, number: int, most: int | None) -> None:
        if self.hubs[number].awake:
            self.hubs[number].state.catch_up(most)

    @rule(number=NUMBERS, held=st.booleans())
    def hold_writes(self, number: int, held: bool) -> None:
        self.hubs[number].state.held = held

    @rule(number=NUMBERS)
    def let_a_write_go_on(self, number: int) -> None:
        self.hubs[number].state.release()
        if self.hubs[number].awake:
            self.run()

    @rule(number=NUMBERS, reachable=st.booleans())
    def cut_off(self, number: int, reachable: bool) -> None:
        self.hubs[number].state.reachable = reachable

    @rule(number=NUMBERS)
    def lose_an_answer(self, number: int) -> None:
        self.hubs[number].state.lose_answers += 1

    @rule(number=NUMBERS)
    def meet_another_write(self, number: int) -> None:
        self.hubs[number].state.conflicts += 1

    @rule(number=NUMBERS, awake=st.booleans())
    def freeze_or_wake(self, number: int, awake: bool) -> None:
        self.hubs[number].awake = awake

    @rule(number=NUMBERS, willing=st.booleans())
    def change_mind(self, number: int, willing: bool) -> None:
        self.hubs[number].willing = willing

    @rule(number=NUMBERS)
    def give_up(self, number: int) -> None:
        hub = self.hubs[number]
        if not hub.awake:
            return

        async def begin() -> None:
            # Kept by the hub, so that it is ended with it.
            if hub.task is None or hub.task.done():
                hub.task = asyncio.ensure_future(hub.leadership.resign())

        self.loop.run_until_complete(begin())
        self.run()

    @rule(number=NUMBERS)
    def act_on_an_old_term(self, number: int) -> None:
        hub = self.hubs[number]
        if hub.state.held or not hub.state.reachable:
            return
        newest = max((term for term, _ in self.led), default=0)
        hub.state.catch_up()

        async def write() -> None:
            for term in range(newest):
                try:
                    await hub.state.change("deed", lambda _, deed=b"%d" % term: deed, term=term)
                except FelloeError as error:
                    assert error.code == "not_leader"
                else:
                    raise AssertionError(f"term {term} wrote in term {newest}")

        self.loop.run_until_complete(write())

    @invariant()
    def there_is_one_leader_at_most(self) -> None:
        if hasattr(self, "hubs"):
            self.look()

    def teardown(self) -> None:
        if not hasattr(self, "hubs"):
            return
        for hub in self.hubs:
            hub.state.lose_answers = hub.state.conflicts = 0
        self.heal()
        self.live(90.0)
        assert any(hub.leads() for hub in self.hubs), "some hub leads in the end"
        tasks = [hub.task for hub in self.hubs if hub.task is not None]
        self.loop.run_until_complete(asyncio.wait(tasks))
        self.loop.close()


TestLeading = Leading.TestCase
TestLeading.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
