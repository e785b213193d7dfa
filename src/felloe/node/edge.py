"""The OpenAI API of a node: what its gateway listens on, answers from, counts and says of the node."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from felloe import __version__
from felloe.domain.models import Model
from felloe.domain.plan import DesiredModel
from felloe.domain.roster import Roster
from felloe.gateway.config import GatewayConfig, Limits, ListedModel, Listener, NodeStatus
from felloe.gateway.metrics import Metrics
from felloe.gateway.server import Gateway
from felloe.node.config import NodeConfig
from felloe.routing.rules import spoken_versions

if TYPE_CHECKING:
    from felloe.node.node import Node


def create_gateway(node: "Node") -> Gateway:
    """The gateway of a node whose other parts are there already."""
    return Gateway(
        _gateway_config(node.config),
        node.router,
        lambda: listed_models(node.roster.snapshot(), node.placing.wanted.models),
        node.keys,
        lambda: _status(node),
        _metrics(node),
    )


def listed_models(roster: Roster, wanted: Sequence[DesiredModel]) -> list[ListedModel]:
    """The models that may be asked for, one row a name, by name: what some living node serves, and what is wanted."""
    ready: dict[str, Model] = {}
    loading: set[str] = set()
    spoken = spoken_versions(__version__, roster)
    for member in roster.members.values():
        if not member.alive or member.record.version not in spoken:
            continue
        loading.update(row.model for row in member.record.loading)
        for replica in member.record.replicas:
            if replica.state == "ready":
                ready.setdefault(replica.model.name, replica.model)
            elif replica.state == "starting":
                loading.add(replica.model.name)
    rows = [
        ListedModel(
            name=name, created=model.created, context=model.context, capabilities=model.capabilities, state="ready"
        )
        for name, model in ready.items()
    ]
    rows += [
        ListedModel(
            name=desired.model, context=desired.context, state="loading" if desired.model in loading else "cold"
        )
        for desired in wanted
        if desired.model not in ready
    ]
    return sorted(rows, key=lambda row: row.name)


def _status(node: "Node") -> NodeStatus:
    if node.connection.is_up or node.engines.replicas():
        return NodeStatus(True)
    return NodeStatus(False, "no hub can be reached and no model is loaded here")


def _metrics(node: "Node") -> Metrics:
    """The gateway's counters, and what the other parts can tell in a number."""
    metrics, routed = Metrics(), node.router.stats
    for name, text, read in (
        ("felloe_hub_connected", "1 while a hub is connected.", lambda: float(node.connection.is_up)),
        ("felloe_nodes_alive", "Living nodes in the roster.", lambda: _living_nodes(node)),
        (
            "felloe_active_requests",
            "Requests this node is answering.",
            lambda: sum(node.admission.load().active.values()),
        ),
        (
            "felloe_waiting_requests",
            "Requests that wait here.",
            lambda: sum(node.admission.load().waiting.values()),
        ),
        ("felloe_attempts_local", "Requests given to this node's replicas.", lambda: routed().local),
        ("felloe_attempts_remote", "Requests given to other nodes.", lambda: routed().remote),
        ("felloe_waits_for_loading", "Times that a request met a model that nobody served.", lambda: routed().cold),
        ("felloe_answers_resumed", "Answers that went on at another replica.", lambda: routed().resumed),
        ("felloe_answers_broken", "Answers that could not go on.", lambda: routed().broken),
        (
            "felloe_resume_gap_seconds",
            "Time that clients waited for answers to go on.",
            lambda: routed().gap_seconds,
        ),
    ):
        metrics.gauge(name, text, read)
    return metrics


def _living_nodes(node: "Node") -> float:
    return sum(member.alive for member in node.roster.snapshot().members.values())


def _gateway_config(config: NodeConfig) -> GatewayConfig:
    api = config.api
    listener = Listener(
        host=api.host,
        port=api.port,
        certificate=Path(api.tls_certificate).expanduser() if api.tls_certificate else None,
        private_key=Path(api.tls_key).expanduser() if api.tls_key else None,
    )
    return GatewayConfig(
        listeners=(listener,),
        require_key=api.require_key,
        origins=api.cors_origins,
        host_names=api.names,
        limits=Limits(deadline_seconds=api.request_seconds),
    )
