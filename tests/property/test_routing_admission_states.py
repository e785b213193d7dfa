"""Whatever comes in whatever order: no slot is lost, none is given twice, and everyone ends somehow."""

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from felloe.domain.errors import FelloeError
from felloe.domain.requests import Piece, TokenResume
from felloe.routing.admission import Admission
from routing_fakes import MODEL, FakeEngines, Score, gather, make_replica, make_request, settle

QUEUE_LIMIT = 3


class Queueing(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.set_up())
        self.tasks: list[asyncio.Task[tuple[list[Piece], object, FelloeError | None]]] = []
        self.slots = 2

    async def set_up(self) -> None:
        self.engines = FakeEngines(Score(2), make_replica(slots=2))
        self.engines.gate.clear()
        self.admission = Admission(self.engines, queue_limit=QUEUE_LIMIT)

    def run(self) -> None:
        self.loop.run_until_complete(settle(30))

    async def start(self, asker: str, resumed: bool) -> None:
        request = make_request()
        if resumed:
            request = replace(request, resume=TokenResume(()))
        self.tasks.append(asyncio.create_task(gather(lambda deliver: self.admission.answer(request, deliver, asker))))

    @rule(asker=st.sampled_from(["", "x", "y"]), resumed=st.booleans(), at_once=st.booleans())
    def ask(self, asker: str, resumed: bool, at_once: bool) -> None:
        self.loop.run_until_complete(self.start(asker, resumed))
        if not at_once:
            self.run()

    @precondition(lambda self: self.tasks)
    @rule(at=st.integers(0, 100), at_once=st.booleans())
    def cancel(self, at: int, at_once: bool) -> None:
        self.tasks[at % len(self.tasks)].cancel()
        if not at_once:
            self.run()

    @rule()
    def let_all_running_end(self) -> None:
        self.engines.gate.set()
        self.loop.run_until_complete(settle(1))
        self.engines.gate.clear()
        self.run()

    @rule(slots=st.integers(1, 3))
    def load_anew(self, slots: int) -> None:
        self.engines.loaded = (make_replica(slots=slots),)
        self.slots = max(self.slots, slots)
        self.admission.replicas_changed()
        self.run()

    @rule()
    def lose_the_replica(self) -> None:
        self.engines.loaded = (make_replica(state="failed"),)
        self.admission.replicas_changed()
        self.run()

    @invariant()
    def slots_and_queue_are_bounded(self) -> None:
        busy = self.admission.busy(MODEL)
        assert 0 <= busy.active <= 3
        assert 0 <= busy.waiting <= 2 * QUEUE_LIMIT

    @invariant()
    def nobody_waits_beside_a_free_slot(self) -> None:
        self.run()
        busy = self.admission.busy(MODEL)
        replica = self.engines.find(MODEL)
        assert self.engines.running == busy.active
        if replica is None:
            assert busy.waiting == 0
        elif busy.waiting:
            assert busy.active >= replica.slots

    def teardown(self) -> None:
        self.engines.gate.set()
        self.loop.run_until_complete(asyncio.wait(self.tasks) if self.tasks else settle())
        busy = self.admission.busy(MODEL)
        assert busy == (0, 0)
        assert self.engines.running == 0
        ends = [None if task.cancelled() else task.result() for task in self.tasks]
        assert all(end is None or (end[1] is None) != (end[2] is None) for end in ends)
        self.loop.run_until_complete(self.admission.drain())
        self.loop.close()


Queueing.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_queueing = Queueing.TestCase
