"""What a run notes down, and what its checks and tables read. Times: monotonic seconds. Memory: bytes."""

from typing import Literal

from msgspec import Struct

Outcome = Literal["answered", "refused", "failed", "broken", "hung"]
"""`refused` and `failed` are clear errors, before and after the first token; `broken` and `hung` are not."""


class Prompt(Struct, frozen=True):
    """One question with a greedy answer of a fixed length. `digest` and `text` are the undisturbed answer's."""

    name: str
    content: str
    tokens: int
    stream: bool
    digest: str = ""
    text: str = ""


class Request(Struct, frozen=True, kw_only=True):
    """One request as its client saw it.

    `first` is when the first token came, `silence` the longest wait for a token after that. `text` is kept only when
    its digest is not the expected one.
    """

    node: str
    prompt: str
    stream: bool
    begin: float
    end: float
    outcome: Outcome
    first: float | None = None
    silence: float = 0.0
    status: int = 0
    code: str = ""
    detail: str = ""
    digest: str = ""
    text: str = ""
    tokens: int = 0

    @property
    def pause(self) -> float:
        """The longest time without a token, the wait for the first one included, in seconds."""
        return max(self.silence, (self.first if self.first is not None else self.end) - self.begin)


class Happening(Struct, frozen=True, kw_only=True):
    """A fault that was really applied.

    `down` names the nodes whose process was killed or frozen, `lonely` those without a model that had no way to a
    replica. `back` is when every killed process answered again. `converged` is the time from the fault's end until
    the network was whole, None when it was not in time.
    """

    kind: str
    targets: tuple[str, ...]
    begin: float
    end: float
    back: float
    settled: float
    converged: float | None
    down: frozenset[str] = frozenset()
    lonely: frozenset[str] = frozenset()
    note: str = ""


class Write(Struct, frozen=True, kw_only=True):
    """A change of the network's state that was asked for. `end` is when it was acknowledged, None when it never was."""

    action: Literal["key", "revoke key", "join", "revoke node"]
    subject: str
    begin: float
    end: float | None
    detail: str = ""


class Observation(Struct, frozen=True, kw_only=True):
    """What one node showed of the network's state between `begin` and `end`: names of API keys and living nodes."""

    node: str
    begin: float
    end: float
    keys: frozenset[str]
    alive: frozenset[str]


class Memory(Struct, frozen=True, kw_only=True):
    """The resident memory of one process. `role` is node, engine or nats-server."""

    node: str
    role: str
    process: int
    time: float
    size: int


class Intrusion(Struct, frozen=True, kw_only=True):
    """What a revoked node was seen to do, `after` seconds after its revocation was acknowledged."""

    node: str
    after: float
    what: str


class Collapse(Struct, frozen=True, kw_only=True):
    """A node's process that ended although no fault had ended it, and its last words."""

    node: str
    time: float
    words: str


class Records(Struct, kw_only=True):
    """Everything noted in one run."""

    seed: int
    begin: float
    end: float
    serving: frozenset[str]
    prompts: dict[str, Prompt]
    requests: list[Request] = []
    happenings: list[Happening] = []
    writes: list[Write] = []
    observations: list[Observation] = []
    memory: list[Memory] = []
    intrusions: list[Intrusion] = []
    collapses: list[Collapse] = []
    left_out: dict[str, str] = {}
