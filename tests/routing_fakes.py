"""Fakes at the ports of routing: rosters, engines that play a score, a sealed stream in memory."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from felloe import __version__
from felloe.domain.errors import FelloeError
from felloe.domain.hardware import Hardware
from felloe.domain.ids import ModelDigest, ModelName, NodeId, RequestId
from felloe.domain.models import Capability, Model
from felloe.domain.ports import Answers, Deliver
from felloe.domain.requests import Done, InferenceRequest, Kind, Piece, Reach, TokenResume, Usage
from felloe.domain.roster import Load, Member, NodeRecord, Replica, ReplicaState, Roster
from felloe.routing.admission import Admission

HERE = NodeId("a" * 26)
MODEL = ModelName("tiny-python")
DIGEST = ModelDigest("sha256:" + "0" * 64)


def node_id(number: int) -> NodeId:
    letters = "abcdefghijklmnopqrstuvwxyz"
    text = ""
    for _ in range(25):
        text += letters[number % 26]
        number //= 26
    return NodeId("b" + text)


def make_replica(
    name: str = MODEL,
    *,
    state: ReplicaState = "ready",
    slots: int = 2,
    context: int = 2048,
    digest: str = DIGEST,
    capabilities: tuple[Capability, ...] = ("chat", "completion"),
    speed: float = 0.0,
) -> Replica:
    model = Model(
        name=ModelName(name),
        digest=ModelDigest(digest) if digest else "",
        size=1,
        architecture="llama",
        quantisation="q8_0",
        context=context,
        capabilities=capabilities,
    )
    return Replica(model=model, engine="fake", state=state, slots=slots, context=context, speed=speed)


def make_member(
    node: NodeId,
    *replicas: Replica,
    load: Load | None = None,
    alive: bool = True,
    issued_at: float = 1.0,
    version: str = __version__,
) -> Member:
    record = NodeRecord(
        id=node,
        name=node,
        roles=("spoke",),
        version=version,
        public_key=bytes(32),
        sealing_config=node.encode(),
        hardware=Hardware(system="Linux", machine="x", processor="x", cores=1, memory_total=1, memory_available=1),
        replicas=replicas,
        started_at=0.0,
        issued_at=issued_at,
    )
    return Member(record=record, load=load or Load(), alive=alive, seen_at=0.0)


def make_roster(*members: Member, this: NodeId = HERE, version: int = 1) -> Roster:
    return Roster(this=this, members={member.record.id: member for member in members}, version=version)


def make_request(
    *,
    kind: Kind = "chat",
    model: str = MODEL,
    body: dict[str, object] | None = None,
    deadline: float = 30.0,
    reach: Reach = "network",
) -> InferenceRequest:
    return InferenceRequest(
        id=RequestId("chatcmpl-" + "0" * 32),
        kind=kind,
        model=ModelName(model),
        body=body or {"messages": [{"role": "user", "content": "hello"}]},
        created=1_700_000_000,
        deadline=deadline,
        reach=reach,
    )


class FakeRosters:
    def __init__(self, roster: Roster) -> None:
        self.roster = roster
        self.callbacks: list[Callable[[Roster], None]] = []

    def snapshot(self) -> Roster:
        return self.roster

    def on_change(self, callback: Callable[[Roster], None]) -> None:
        self.callbacks.append(callback)

    def set(self, roster: Roster) -> None:
        self.roster = roster
        for callback in self.callbacks:
            callback(roster)


class Score:
    """One answer that every replica plays the same: a role frame, `tokens` tokens, a finish frame.

    The finish frame stands for an end token that is counted and has no id. From token `ids_until` on the engine does
    not know the ids.
    """

    def __init__(self, tokens: int, *, with_ids: bool = True, role_frame: bool = True, ids_until: int = 10**9) -> None:
        self.tokens = tokens
        self.with_ids = with_ids
        role = [(None, b'data: {"role":"assistant"}\n\n')] if role_frame else []
        texts = [(1000 + at, f'data: {{"t":{at},"finish_reason":null}}\n\n'.encode()) for at in range(tokens)]
        self.events: list[tuple[int | None, bytes]] = [
            *role,
            *texts,
            (None, b'data: {"finish_reason":"stop"}\n\n'),
        ]
        self.unknown_from = 1000 + ids_until
        self.done = Done(Usage(prompt=7, completion=tokens + 1), "stop")

    @property
    def frames(self) -> bytes:
        return b"".join(frame for _, frame in self.events)

    @property
    def ids(self) -> list[int]:
        known = [token for token, _ in self.events if token is not None and token < self.unknown_from]
        return known if self.with_ids else []

    @property
    def last_number(self) -> int:
        return self.tokens + 1 if self.with_ids else len(self.events)

    def pieces(self, request: InferenceRequest, groups: Sequence[int]) -> list[Piece]:
        """The answer to `request` in pieces of as many events as `groups` says, again and again."""
        events = list(self.events)
        number = 0
        if isinstance(request.resume, TokenResume):
            assert self.with_ids
            number = len(request.resume.ids)
            assert list(request.resume.ids) == self.ids[:number]
            before = [at for at, (token, _) in enumerate(events) if token is not None][:number]
            events = events[before[-1] + 1 :] if before else [e for e in events if b"assistant" not in e[1]]
        pieces: list[Piece] = []
        at = turn = 0
        while at < len(events):
            size = groups[turn % len(groups)]
            group = events[at : at + size]
            tokens = [token for token, _ in group if token is not None]
            ended = b'"finish_reason":"' in group[-1][1]
            number += len(tokens) + ended if self.with_ids else len(group)
            known = self.with_ids and all(token < self.unknown_from for token in tokens)
            pieces.append(Piece(number, tuple(tokens) if known else (), b"".join(frame for _, frame in group)))
            at += size
            turn += 1
        return pieces


class Death:
    """An engine's end after `pieces` pieces: by `code`, or by just stopping when that is empty."""

    def __init__(self, pieces: int, code: str = "engine_failed") -> None:
        self.pieces = pieces
        self.code = code


class Deaths:
    """Which attempt dies when, shared by all engines of a test; attempts beyond the list live."""

    def __init__(self, *deaths: Death) -> None:
        self.left = list(deaths)
        self.attempts = 0

    def next(self) -> Death | None:
        self.attempts += 1
        return self.left.pop(0) if self.left else None


class FakeEngines:
    """The `Replicas` of one node: plays a score. `gate` holds every answer back before its first piece."""

    def __init__(
        self,
        score: Score | None = None,
        *replicas: Replica,
        deaths: Deaths | None = None,
        groups: Sequence[int] = (1,),
    ) -> None:
        self.score = score or Score(3)
        self.loaded = replicas or (make_replica(),)
        self.deaths = deaths or Deaths()
        self.groups = groups
        self.gate = asyncio.Event()
        self.gate.set()
        self.requests: list[InferenceRequest] = []
        self.running = 0
        self.closed = 0
        self.error: Exception | None = None

    def replicas(self) -> tuple[Replica, ...]:
        return self.loaded

    def find(self, model: ModelName) -> Replica | None:
        return next((r for r in self.loaded if r.model.name == model and r.state == "ready"), None)

    async def answer(self, request: InferenceRequest, deliver: Deliver) -> Done:
        self.requests.append(request)
        self.running += 1
        death = self.deaths.next()
        try:
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            for at, piece in enumerate(self.score.pieces(request, self.groups)):
                if death is not None and at == death.pieces:
                    break
                behind = deliver(piece)
                if behind is not None:
                    await behind
            if death is not None:
                raise FelloeError(death.code or "engine_failed", "the fake engine died")
            return self.score.done
        finally:
            self.running -= 1
            self.closed += 1


class FakeNodes:
    """The way to other nodes, without wire or seal: each node is an `Admission` of its own."""

    def __init__(self, nodes: Mapping[NodeId, Admission]) -> None:
        self.nodes = dict(nodes)
        self.asked: list[NodeId] = []
        self.requests: list[InferenceRequest] = []
        self.can_leave: Callable[[], bool] = lambda: False

    async def answer(
        self,
        record: NodeRecord,
        request: InferenceRequest,
        deliver: Deliver,
        can_leave: Callable[[], bool] = lambda: False,
    ) -> Done:
        self.asked.append(record.id)
        self.can_leave = can_leave
        self.requests.append(request)
        return await self.nodes[record.id].answer(request, deliver, HERE)


class FakeSealer:
    """Marks instead of sealing: wire order and the end are still checked by the opener."""

    def __init__(self) -> None:
        self.number = 0

    def seal(self, part: bytes) -> bytes:
        self.number += 1
        return f"{self.number}:".encode() + part

    def finish(self, part: bytes = b"") -> bytes:
        return b"end " + self.seal(part)


class FakeOpener:
    def __init__(self) -> None:
        self.number = 0
        self.finished = False

    def open(self, message: bytes) -> bytes:
        if message.startswith(b"end "):
            self.finished = True
            message = message[4:]
        number, _, part = message.partition(b":")
        self.number += 1
        if int(number) != self.number:
            raise FelloeError("unsealed", "not the next message")
        return part


def fake_seal(config: bytes, request: bytes) -> tuple[bytes, FakeOpener]:
    return config + b"|" + request, FakeOpener()


class FakeKeys:
    """Opens what was sealed to `config`, once."""

    def __init__(self, config: bytes) -> None:
        self.config = config

    def open(self, sealed: bytes) -> tuple[bytes, FakeSealer]:
        config, _, request = sealed.partition(b"|")
        if config != self.config:
            raise FelloeError("unsealed", "sealed to another key")
        return request, FakeSealer()


class FakeStream:
    """Both ends of one stream. `lose_after` messages the asker hears nothing but the loss."""

    def __init__(self, asker: NodeId, lose_after: int | None = None) -> None:
        self.asker = asker
        self.messages: asyncio.Queue[bytes | FelloeError | None] = asyncio.Queue()
        self.task: asyncio.Task[None] | None = None
        self.sent = 0
        self.lose_after = lose_after
        self.closed = False
        self.completed = False

    async def send(self, message: bytes) -> None:
        if self.sent == self.lose_after:
            self.messages.put_nowait(FelloeError("replica_lost", "the line is cut"))
            await asyncio.Event().wait()
        self.sent += 1
        self.messages.put_nowait(message)

    async def finish(self, message: bytes = b"") -> None:
        await self.send(message)
        self.messages.put_nowait(None)

    async def refuse(self, code: str, retry_after: float | None = None) -> None:
        self.messages.put_nowait(FelloeError(code, "refused", retry_after=retry_after))

    async def pump(self, consume: Callable[[bytes], Awaitable[None] | None]) -> None:
        while not self.completed:
            item = await self.messages.get()
            if isinstance(item, FelloeError):
                raise item
            if item is None:
                return
            behind = consume(item)
            if behind is not None:
                await behind

    def complete(self) -> None:
        self.completed = True

    async def close(self) -> None:
        self.closed = True
        if self.task is not None:
            self.task.cancel()


class FakeExchange:
    """Carries sealed requests to the handlers of the nodes; `losses` says after how many messages a stream is cut."""

    def __init__(
        self, handlers: Mapping[NodeId, Callable[..., object]], losses: list[int | None] | None = None
    ) -> None:
        self.handlers = dict(handlers)
        self.losses = losses or []
        self.streams: list[FakeStream] = []

    async def open(
        self, node: NodeId, sealed: bytes, *, silence_seconds: float, can_leave: Callable[[], bool] | None = None
    ) -> FakeStream:
        del silence_seconds, can_leave
        stream = FakeStream(HERE, self.losses.pop(0) if self.losses else None)
        self.streams.append(stream)
        stream.task = asyncio.ensure_future(self.handlers[node](sealed, stream))  # pyright: ignore
        return stream

    async def close(self) -> None:
        """Wait until every handler has ended, so that nothing outlives its test."""
        tasks = [stream.task for stream in self.streams if stream.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


Outcome = tuple[list[Piece], Done | None, FelloeError | None]


async def gather(ask: Callable[[Deliver], Awaitable[Done]]) -> Outcome:
    """Everything an answer gives: its pieces, its `Done`, its error. Nothing may be delivered after its end."""
    pieces: list[Piece] = []
    ended = False

    def deliver(piece: Piece) -> None:
        assert not ended, "nothing follows the end of an answer"
        pieces.append(piece)

    try:
        return pieces, await ask(deliver), None
    except FelloeError as error:
        return pieces, None, error
    finally:
        ended = True


async def collect(answers: Answers, request: InferenceRequest) -> Outcome:
    """Everything that `answers` gives for `request`."""
    return await gather(lambda deliver: answers.answer(request, deliver))


class Reader:
    """A client that takes one piece at a time: the answer is held back until it wants the next one."""

    def __init__(self, ask: Callable[[Deliver], Coroutine[Any, Any, Done]]) -> None:
        self.answer = asyncio.create_task(ask(self._take))
        self._pieces: asyncio.Queue[Piece] = asyncio.Queue()
        self._go_on: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keeps_up = False

    def _take(self, piece: Piece) -> Awaitable[None] | None:
        self._pieces.put_nowait(piece)
        if self._keeps_up:
            return None
        self._go_on = asyncio.get_running_loop().create_future()
        return self._go_on

    async def next(self) -> Piece:
        """The next piece; raises what the answer fails with."""
        if not self._go_on.done():
            self._go_on.set_result(None)
        taking = asyncio.create_task(self._pieces.get())
        await asyncio.wait((taking, self.answer), return_when=asyncio.FIRST_COMPLETED)
        if not taking.done():
            taking.cancel()
            await self.answer
        return await taking

    async def rest(self) -> tuple[list[Piece], Done]:
        """The following pieces and the end, with nothing held back any more."""
        self._keeps_up = True
        if not self._go_on.done():
            self._go_on.set_result(None)
        done = await self.answer
        return [self._pieces.get_nowait() for _ in range(self._pieces.qsize())], done

    async def close(self) -> None:
        """Give the answer up."""
        self.answer.cancel()
        await asyncio.wait((self.answer,))


async def settle(rounds: int = 20) -> None:
    """Let every task that can run, run."""
    for _ in range(rounds):
        await asyncio.sleep(0)
