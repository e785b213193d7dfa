"""Plans do not thrash, whatever nodes and users do: Hypothesis has nodes flap, fill and fail, and users ask."""

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from felloe.domain.ids import ModelName
from felloe.domain.roster import Load
from felloe.placement.rules import Room
from serving_house import ServingHouse

NODES = st.integers(1, 3)
NAMES = ("a", "b", "c", "d")
MODELS = st.sampled_from(NAMES)
SECONDS = st.integers(1, 40)


class NoThrash(RuleBasedStateMachine):
    """`causes` counts what happened that may rightly change a plan."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.house = ServingHouse(100, 100, 100, 60)
        self.causes = 0

    def teardown(self) -> None:
        self.runner.close()

    def live(self, seconds: float, every: float = 1.0) -> None:
        self.runner.run(self.house.live(seconds, every))

    @initialize(lives=st.booleans())
    def begin(self, lives: bool) -> None:
        async def declare() -> None:
            await self.house.want("a", 70, priority=2)
            await self.house.want("b", 50, replicas_max=2, idle_seconds=60.0)
            await self.house.want("c", 50, replicas_min=0, idle_seconds=60.0)
            await self.house.want("d", 90, replicas_min=0, priority=1)

        self.runner.run(declare())
        self.causes += 4
        self.live(10 if lives else 1)

    @rule(node=NODES, times=st.integers(1, 30), seconds=st.integers(1, 5))
    def flap(self, node: int, times: int, seconds: int) -> None:
        """Comes and goes; however often, plans change for it a few times only, each time after twice the wait."""
        before = len(self.house.written)
        for _ in range(times):
            self.house.node(node).alive = not self.house.node(node).alive
            self.live(seconds)
        assert len(self.house.written) - before <= 8

    @rule(node=NODES, seconds=SECONDS)
    def die(self, node: int, seconds: int) -> None:
        self.house.node(node).alive = False
        self.causes += 1
        self.live(seconds)

    @rule(node=NODES, seconds=SECONDS)
    def come_back(self, node: int, seconds: int) -> None:
        self.house.node(node).alive = True
        self.causes += 1
        self.live(seconds)

    @rule(model=MODELS, seconds=SECONDS)
    def ask(self, model: str, seconds: int) -> None:
        self.house.ask(model)
        self.causes += 1
        self.live(seconds)

    @rule(model=MODELS, active=st.integers(0, 8), waiting=st.integers(0, 20), seconds=SECONDS)
    def work(self, model: str, active: int, waiting: int, seconds: int) -> None:
        for number in self.house.where(model):
            self.house.busy(number, model, active, waiting)
        self.causes += 1
        self.live(seconds)

    @rule()
    def rest(self) -> None:
        self.house.quiet()
        self.live(400, 5.0)

    @rule(node=NODES, memory=st.sampled_from([0, 40, 60, 100]), seconds=SECONDS)
    def fill(self, node: int, memory: int, seconds: int) -> None:
        self.house.shrink(node, memory)
        self.causes += 1
        self.live(seconds)

    @rule(node=NODES, model=MODELS, breaks=st.booleans(), seconds=SECONDS)
    def fail(self, node: int, model: str, breaks: bool, seconds: int) -> None:
        if breaks:
            self.house.node(node).breaks[ModelName(model)] = "out_of_memory"
        else:
            self.house.node(node).breaks.pop(ModelName(model), None)
        self.causes += 1
        self.live(seconds)

    @rule()
    def lead_anew(self) -> None:
        self.house.new_leader()
        self.live(1)

    @rule()
    def quiet_hours_change_nothing(self) -> None:
        """Once nothing happens any more the plan comes to rest, and stays."""
        for node in self.house.nodes:
            node.load, node.breaks = Load(), {}
        self.live(60)
        self.live(2400, 25.0)
        before = self.house.plan.number
        self.live(1800, 25.0)
        barred = {node.id for node in self.house.nodes if node.failures}
        assert self.house.plan.number - before <= len(barred), "only what failed somewhere is tried once more"
        good = (node.machine for node in self.house.nodes if node.alive and node.id not in barred)
        roomy = any(machine is not None and machine.devices[1].memory >= 70 for machine in good)
        assert self.house.where("a") or not roomy, "what is wanted most is served wherever it fits"

    @invariant()
    def plans_are_few(self) -> None:
        """Each cause may have a plan that acts at once, one that makes it better, one that ends the handing over."""
        assert len(self.house.written) <= 3 * self.causes + 10

    @invariant()
    def nothing_exceeds_memory(self) -> None:
        """What was planned last fits into what the nodes said then, each node's placements together."""
        rooms = {node.id: Room(node.machine) for node in self.house.nodes if node.machine is not None}
        shrunk = {node.id for node in self.house.nodes if not node.alive}
        for one in self.house.plan.placements:
            assert one.node in shrunk or rooms[one.node].take(one)

    @invariant()
    def nobody_is_served_twice_on_a_node(self) -> None:
        places = [(one.model, one.node) for one in self.house.plan.placements]
        assert len(places) == len(set(places))


NoThrash.TestCase.settings = settings(max_examples=10, stateful_step_count=12, deadline=None)
TestNoThrash = NoThrash.TestCase
