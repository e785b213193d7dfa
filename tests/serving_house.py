"""A network of nodes with memory, for the leader's rules: nodes come, go and flap, load what the plan says, are asked.

The solver here is a plain first fit, which degrades by the context alone: what is tested is what the leader does with
what a solver finds.
"""

from msgspec.structs import replace

from felloe.domain.approval import Approvals, Approved, Listing
from felloe.domain.fleet import Device, Fleet, Machine
from felloe.domain.hardware import Hardware
from felloe.domain.ids import ContentId, ModelName, NodeId
from felloe.domain.models import Model
from felloe.domain.plan import DesiredModel, Need, Part, Placement, Plan, Refusal
from felloe.domain.roster import Load, LoadFailure, LoadingReplica, Member, NodeRecord, Replica, Roster
from felloe.domain.serving import DemandAnswer, DemandQuestion, NetworkPlan
from felloe.hubs.records import LEASE, Lease, encode
from felloe.hubs.serving_book import ServingBook
from felloe.node.planning import Planning, PlanningPorts
from felloe.placement.facts import ModelFacts
from felloe.placement.problem import Problem
from felloe.placement.rules import Room
from felloe.placement.shape import LayerShape, Shape
from hubs_fakes import FakeState, FakeStore

HARDWARE = Hardware(system="", machine="", processor="", cores=1, memory_total=1, memory_available=1)
LOAD_SECONDS = 3.0


def node_id(number: int) -> NodeId:
    return NodeId("n" * 24 + "abcdefghijklmnopqrstuvwxyz"[number // 26] + "abcdefghijklmnopqrstuvwxyz"[number % 26])


def content_of(model: str) -> ContentId:
    return ContentId(model.encode().hex().ljust(64, "0")[:64])


def facts(model: str, size: int) -> ModelFacts:
    shape = Shape(
        architecture="llama",
        quantisation="Q4_K_M",
        parameters=size,
        context=8192,
        width=1,
        heads=1,
        key_length=1,
        value_length=1,
        feed_forward=1,
        vocabulary=1,
        layers=(LayerShape(weights=size),),
        input_bytes=0,
        output_bytes=0,
    )
    return ModelFacts(shape=shape, content=content_of(model))


def wish(model: str, **fields: object) -> DesiredModel:
    return DesiredModel(model=ModelName(model), **fields)  # type: ignore[arg-type]


def machine(number: int, gpu: int, ram: int = 0) -> Machine:
    devices = (Device(id="ram", kind="cpu", memory=ram), Device(id="gpu0", kind="cuda", memory=gpu))
    return Machine(id=node_id(number), name=f"node-{number}", devices=devices)


def first_fit(problem: Problem) -> Plan:
    """Best variants that run stay, then each model takes the first GPU with room; higher priorities come first."""
    rooms = {one.id: Room(one) for one in problem.fleet.machines}
    placements: list[Placement] = []
    refusals: list[Refusal] = []
    for desired in sorted(problem.desired, key=lambda one: (-one.priority, -one.demand, one.model)):
        missing = desired.replicas_max
        for one in problem.current:
            best = one.model == desired.model and one.variant == (desired.variants or (desired.model,))[0]
            if best and missing and one.node in rooms and rooms[one.node].take(one):
                placements.append(one)
                missing -= 1
        for variant in desired.variants or (desired.model,):
            for node, room in rooms.items():
                free = all((one.model, one.node) != (desired.model, node) for one in placements)
                found = _place(desired, variant, node, room, problem) if missing and free else None
                if found is not None:
                    placements.append(found)
                    missing -= 1
        if missing:
            refusals.append(Refusal(model=desired.model, missing=missing, reason="there is not enough memory"))
    return Plan(placements=tuple(placements), refusals=tuple(refusals))


def _place(desired: DesiredModel, variant: ModelName, node: NodeId, room: Room, problem: Problem) -> Placement | None:
    known = problem.models.get(variant)
    if known is None or (node, variant) in problem.barred:
        return None
    found = Placement(
        model=desired.model,
        variant=variant,
        node=node,
        parts=(Part(device="gpu0", layers=2, need=Need(weights=known.shape.layers[0].weights)),),
        context=desired.context or 8192,
        slots=desired.slots,
        content=known.content,
    )
    return found if room.take(found) else None


class FakeServingNode:
    """A node that does what the plan says, some seconds later. `restarting`: their engines died and start again."""

    def __init__(self, number: int, gpu: int) -> None:
        self.machine: Machine | None = machine(number, gpu)
        self.id = node_id(number)
        self.alive = True
        self.ready: dict[ModelName, tuple[Placement, float]] = {}
        self.by_hand: tuple[Replica, ...] = ()
        self.breaks: dict[ModelName, str] = {}
        self.failures: tuple[LoadFailure, ...] = ()
        self.load = Load()
        self.restarting: set[ModelName] = set()

    def follow(self, plan: Plan, now: float) -> None:
        here = {one.model: one for one in plan.placements if one.node == self.id}
        for model in [model for model, (one, _) in self.ready.items() if here.get(model) != one]:
            del self.ready[model]
        for model, one in here.items():
            if one.variant in self.breaks:
                times = sum(failure.times for failure in self.failures if failure.variant == one.variant) + 1
                rest = tuple(failure for failure in self.failures if failure.variant != one.variant)
                code = self.breaks[one.variant]
                failure = LoadFailure(
                    model=model, variant=one.variant, content="", code=code, detail="", devices=(), times=times, at=now
                )
                self.failures = (*rest, failure)
            elif model not in self.ready:
                self.ready[model] = (one, now + LOAD_SECONDS)

    def member(self, now: float) -> Member:
        replicas = tuple(
            Replica(
                model=Model(name=model, digest="", size=0, architecture="", quantisation="", context=0),
                engine="llama",
                state="ready" if now >= at and model not in self.restarting else "starting",
                slots=one.slots,
                context=one.context,
                planned=True,
                variant=one.variant,
            )
            for model, (one, at) in self.ready.items()
        )
        record = NodeRecord(
            id=self.id,
            name=f"node-{self.id[-1]}",
            roles=("spoke",),
            version="0.2.0",
            public_key=b"",
            sealing_config=b"",
            hardware=HARDWARE,
            replicas=replicas + self.by_hand,
            started_at=0,
            issued_at=0,
            machine=self.machine,
            loading=tuple(
                LoadingReplica(model=model, variant=one.variant, stage="starting", ready_in=at - now)
                for model, (one, at) in self.ready.items()
                if now < at
            ),
            failures=self.failures,
        )
        return Member(record=record, load=self.load, alive=self.alive, seen_at=now)


class ServingHouse:
    """A leader over some nodes; `now` is everybody's clock. `written` are the plans in the order of their writing."""

    def __init__(self, *gpus: int) -> None:
        self.now = 1000.0
        self.nodes = [FakeServingNode(number, gpu) for number, gpu in enumerate(gpus)]
        self.models: dict[ModelName, ModelFacts] = {}
        self.store = FakeStore()
        self.book = ServingBook(FakeState(self.store))
        self.term: int | None = None
        self.written: list[NetworkPlan] = []
        self.solved = 0
        self.hidden = False
        ports = PlanningPorts(approvals=self.approvals, shapes=self)
        self.planning = Planning(
            self.book,
            ports,
            roster=self.roster,
            term=lambda: self.term,
            clock=lambda: self.now,
            now=lambda: self.now,
            solve=self.solve,
        )
        self.new_leader()

    def new_leader(self) -> None:
        """The next term begins, with nothing but what is written."""
        self.term = (self.term or 0) + 1
        lease = Lease(holder=node_id(0), term=self.term, beat=0, seconds=15.0)
        assert self.store.commit(len(self.store.log), LEASE, encode(lease))

    def approvals(self) -> Approvals:
        listings = {
            content_of(model): Listing(
                content=content_of(model), name=model, sha256=bytes(32), length=1, size=1, made_by=node_id(0)
            )
            for model in self.models
        }
        approved = {
            content: Approved(listing=listing, approved_at=0, approved_by=(), since=1)
            for content, listing in listings.items()
        }
        return Approvals(
            catalog=b"",
            root_version=1,
            targets_version=1,
            timestamp_version=1,
            expires_at=1e12,
            threshold=1,
            curators=(),
            approved=approved,
            withdrawn={},
        )

    def find(self, content: ContentId) -> Shape | None:
        known = (one.shape for one in self.models.values() if one.content == content and not self.hidden)
        return next(known, None)

    def problem(self, content: ContentId) -> str:
        return "no machine has it" if self.find(content) is None else ""

    def approve(self, model: str, size: int) -> None:
        self.models[ModelName(model)] = facts(model, size)

    async def want(self, model: str, size: int, **fields: object) -> None:
        self.approve(model, size)
        await self.book.declare(wish(model, **fields))

    def ask(self, model: str) -> DemandAnswer:
        return self.planning.demand(DemandQuestion(ModelName(model)))

    def node(self, number: int) -> FakeServingNode:
        return self.nodes[number]

    def roster(self) -> Roster:
        return Roster(this=node_id(0), members={node.id: node.member(self.now) for node in self.nodes})

    async def solve(self, problem: Problem) -> Plan:
        self.solved += 1
        return first_fit(problem)

    @property
    def plan(self) -> Plan:
        made = self.book.plan()
        return Plan(placements=()) if made is None else made.plan

    async def step(self) -> None:
        """One look of the leader; then the living nodes follow its plan."""
        made = await self.planning.step()
        if made is not None:
            self.written.append(made)
        for node in self.nodes:
            if node.alive:
                node.follow(self.plan, self.now)

    async def live(self, seconds: float, every: float = 1.0) -> None:
        end = self.now + seconds
        while self.now < end:
            await self.step()
            self.now += every

    def where(self, model: str) -> list[int]:
        ids = [node.id for node in self.nodes]
        return sorted(ids.index(one.node) for one in self.plan.placements if one.model == model)

    def serving(self, model: str) -> list[int]:
        """The living nodes with a ready replica."""
        return [
            number
            for number, node in enumerate(self.nodes)
            if node.alive and model in node.ready and self.now >= node.ready[ModelName(model)][1]
        ]

    def busy(self, number: int, model: str, active: int = 1, waiting: int = 0) -> None:
        self.node(number).load = Load(active={model: active}, waiting={model: waiting} if waiting else {})

    def quiet(self) -> None:
        for node in self.nodes:
            node.load = Load()

    def fleet(self) -> Fleet:
        return Fleet(machines=tuple(node.machine for node in self.nodes if node.machine is not None))

    def shrink(self, number: int, gpu: int) -> None:
        before = self.node(number).machine
        assert before is not None
        self.node(number).machine = replace(before, devices=machine(number, gpu).devices)
