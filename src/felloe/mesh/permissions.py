"""Every subject of the mesh, and who may use it. Subjects are spelled here and nowhere else.

The server fills `{{name()}}` with the user's name, which is its NodeId, so one template per role holds a node to its
own subjects. An answerer may publish to the reply subject of a request it has received and to no other inbox.
"""

import re

from msgspec import Struct

from felloe.domain.ids import NodeId, is_id

MAXIMUM_PAYLOAD = 1 << 20
"""Bytes in one message; the server drops a connection that sends more."""

REPLY_SECONDS = 3600
"""How long an answerer may stream to a reply subject. The server remembers each reply subject for that long."""

ROSTER = "roster.>"
RECORDS = "roster.*.record"
LOADS = "roster.*.load"
GONE = "roster.gone.*"
DIGESTS = "digest.*"
HUB_SERVICES = "hub.>"

_SELF = "{{name()}}"
_TOKEN = re.compile(r"[a-z0-9_-]{1,64}")
_INBOX = "_INBOX_"


def infer(node: NodeId) -> str:
    """Where `node` takes inference requests."""
    return f"node.{node}.infer"


def flow(node: NodeId) -> str:
    """Where `node` takes credit and cancellation for the streams that it is answering."""
    return f"node.{node}.flow"


def fetch(node: NodeId) -> str:
    """Where `node` takes questions for pieces of the models that it holds."""
    return f"node.{node}.fetch"


def inbox(node: NodeId) -> str:
    """The prefix of the reply subjects of `node`; only `node` may subscribe below it."""
    return f"{_INBOX}{node}"


def inbox_owner(subject: str) -> NodeId | None:
    """Whose inbox a reply subject is in, or None when it is in nobody's.

    Answerers must ask before they reply: a request may name any reply subject, and the answerer may be allowed
    to publish where the asker is not.
    """
    head, _, tail = subject.partition(".")
    owner = head.removeprefix(_INBOX)
    if head == owner or not is_id(owner) or not tail or any(character in tail for character in "*> "):
        return None
    return NodeId(owner)


def roster_record(node: NodeId) -> str:
    """Where `node` alone publishes its signed record."""
    return f"roster.{node}.record"


def roster_load(node: NodeId) -> str:
    """Where `node` alone publishes its load."""
    return f"roster.{node}.load"


def roster_gone(node: NodeId) -> str:
    """Where hubs tell that `node` is gone."""
    return f"roster.gone.{node}"


def digest(hub: NodeId) -> str:
    """Where `hub` alone tells everybody how all members stand."""
    return f"digest.{hub}"


def hub_service(name: str) -> str:
    """Where the hubs answer requests for one service."""
    return f"hub.{_token(name)}"


def command(node: NodeId, name: str) -> str:
    """Where `node` takes a command; only hubs may publish there."""
    return f"node.{node}.command.{_token(name)}"


def state(topic: str) -> str:
    """Where hubs publish shared state."""
    return f"state.{_token(topic)}"


def account_update(account: str) -> str:
    """System account: replaces the token of `account` (its public nkey) on every server; its body is the token."""
    return f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.UPDATE"


def account_connected(account: str) -> str:
    """System account: a client of `account` (its public nkey) has connected."""
    return f"$SYS.ACCOUNT.{account}.CONNECT"


def account_disconnected(account: str) -> str:
    """System account: a client of `account` (its public nkey) is gone."""
    return f"$SYS.ACCOUNT.{account}.DISCONNECT"


def account_connections(account: str) -> str:
    """System account: asks every server for the connections of `account` (its public nkey)."""
    return f"$SYS.REQ.ACCOUNT.{account}.CONNZ"


def _token(text: str) -> str:
    if _TOKEN.fullmatch(text) is None:
        raise ValueError(f"{text!r} cannot be one part of a subject")
    return text


class Template(Struct, frozen=True, kw_only=True):
    """What the users of one role may do; `{{name()}}` stands for the user's name.

    `replies` allows streaming to the reply subject of a received request. The server counts `subscriptions` per
    connection; it knows no limit of connections per user.
    """

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    replies: bool = True
    subscriptions: int


def spoke_template() -> Template:
    """A spoke serves and asks; it has no JetStream and sees no server events."""
    return Template(
        publish=(
            "node.*.infer",
            "node.*.flow",
            "node.*.fetch",
            f"roster.{_SELF}.record",
            f"roster.{_SELF}.load",
            HUB_SERVICES,
            # A hub may be the one that answers its own question.
            f"{_INBOX}{_SELF}.>",
        ),
        subscribe=(f"node.{_SELF}.>", f"{_INBOX}{_SELF}.>", ROSTER, DIGESTS, "state.>"),
        subscriptions=256,
    )


def hub_template() -> Template:
    """A hub is a node that also answers services, publishes shared state and tells who is gone."""
    spoke = spoke_template()
    return Template(
        publish=(*spoke.publish, GONE, f"digest.{_SELF}", "state.>", "node.*.command.*"),
        subscribe=(*spoke.subscribe, HUB_SERVICES),
        subscriptions=1024,
    )


def system_template(application_account: str) -> Template:
    """A hub's second connection: it hears who comes and goes in the application account and replaces its JWT."""
    return Template(
        publish=(account_update("*"), account_connections(application_account), "$SYS.REQ.SERVER.PING.>"),
        subscribe=(f"$SYS.ACCOUNT.{application_account}.*", f"{_INBOX}{_SELF}.>"),
        replies=False,
        subscriptions=64,
    )
