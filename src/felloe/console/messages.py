"""What the command line and a running node say to each other. Sizes in bytes, times in Unix seconds."""

from msgspec import Struct

from felloe.domain.models import Model
from felloe.domain.roster import Load, NodeRecord


class Status(Struct, frozen=True, kw_only=True):
    """This node in short. `alone_since` says since when it has had no hub; 0 while it has one."""

    node: str
    name: str
    network: str
    roles: tuple[str, ...]
    version: str
    base_url: str
    connected: bool
    hubs: tuple[str, ...]
    home: str
    process: int
    started_at: float
    key_required: bool
    credential_expires_at: float
    alone_since: float = 0.0


class PullRow(Struct, frozen=True, kw_only=True):
    """A model on its way into a node's store; the numbers as in `Progress`."""

    reference: str
    file: str = ""
    done: int = 0
    total: int = 0
    rate: float = 0.0
    eta: float = 0.0
    note: str = ""


class MemberRow(Struct, frozen=True, kw_only=True):
    """A node of the network as this node sees it. `silent_seconds` is the time since it last spoke.

    `note` says why this node asks nothing of it, for example `version 0.4.0: too old`. `leads`: it is the leading hub,
    which only hubs know. `problems`: why models are not ready that should be; `pulls`: what is on its way; each node
    knows its own.
    """

    record: NodeRecord
    load: Load
    alive: bool
    this: bool
    silent_seconds: float
    note: str = ""
    leads: bool = False
    problems: dict[str, str] = {}
    pulls: tuple[PullRow, ...] = ()


class PullRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Bring a model into the store. `reference` says from where; an empty `name` means the one that the file gives.

    `secrets` are the tokens of the user's environment, by variable; what the node has in its own comes second.
    """

    reference: str
    name: str = ""
    pin: bool = False
    secrets: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"PullRequest({self.reference!r}, {self.name!r}, pin={self.pin})"


class Progress(Struct, frozen=True, omit_defaults=True):
    """One step of long work, in bytes. The last one carries `model` or `error`.

    `file` is what is worked on, `rate` in bytes a second, `eta` in seconds (0: unknown); `note` says why nothing moves.
    `approval`, beside the model, says in a sentence whether the network may load it.
    """

    done: int = 0
    total: int = 0
    model: Model | None = None
    error: "ErrorBody | None" = None
    file: str = ""
    rate: float = 0.0
    eta: float = 0.0
    note: str = ""
    approval: str = ""


class ErrorBody(Struct, frozen=True):
    """An error of the catalogue, as it travels."""

    code: str
    detail: str


class LoadRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Load a model of the store. 0 means: the configured default. `keep` also loads it at each start."""

    name: str
    context: int = 0
    slots: int = 0
    keep: bool = True


class UnloadRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Unload a model; requests that run get `drain_seconds` to finish."""

    name: str
    drain_seconds: float = 30.0


class DrainRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Let a node finish what it runs, at most `timeout_seconds` long, then stop it. An empty `node` is this one."""

    node: str = ""
    timeout_seconds: float = 300.0


class DrainStep(Struct, frozen=True, omit_defaults=True):
    """How far a drain has come: answers that still run. The last step has `ended` or `error`.

    `only_here` names models that no other node serves now; `node` the node that drains, when it is not this one.
    """

    running: int = 0
    only_here: tuple[str, ...] = ()
    ended: bool = False
    node: str = ""
    error: "ErrorBody | None" = None


class InvitationRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Invite `uses` nodes within `ttl_seconds`."""

    role: str = "spoke"
    uses: int = 1
    ttl_seconds: float = 3600.0


class InvitationCreated(Struct, frozen=True):
    """`token` is shown once and not kept."""

    id: str
    token: str
    role: str
    uses: int
    expires_at: float


class InvitationRow(Struct, frozen=True):
    """An invitation that can still be used."""

    id: str
    role: str
    uses_left: int
    expires_at: float


class KeyRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Make an API key; `expires_seconds` 0 means never."""

    name: str
    expires_seconds: float = 0.0


class KeyCreated(Struct, frozen=True):
    """`key` is shown once; only its hash is kept."""

    id: str
    name: str
    key: str


class KeyRow(Struct, frozen=True):
    """An API key without its secret. `expires_at` 0 means never."""

    id: str
    name: str
    created_at: float
    expires_at: float


class UpstreamRow(Struct, frozen=True):
    """A server of the owner's own. `state` is `enabled`, or `found` when it listens but is not used."""

    name: str
    url: str
    state: str
    models: tuple[str, ...] = ()
    detail: str = ""


class UpstreamRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Use a server that speaks the OpenAI API. An empty `url` means: the one found under this name."""

    name: str
    url: str = ""
    key_env: str = ""
    slots: int = 4


class NameRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Names one thing, by name or id."""

    name: str


class Nothing(Struct, frozen=True):
    """The operation is done and has nothing to tell."""
